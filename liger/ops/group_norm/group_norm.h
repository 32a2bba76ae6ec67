/* group_norm.h - normalisation of each group of channels to mean 0 and variance 1, with a weight and a bias for each channel.
 *
 * Y. Wu, K. He: Group Normalization (2018). */
#ifndef LIGER_OPS_GROUP_NORM_H
#define LIGER_OPS_GROUP_NORM_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_group_norm_forward     y = (x - mean) · rstd · weight + bias
 *
 *   with mean and rstd = 1/√(mean((x - mean)²) + epsilon) over the channels/groups channels of a group and all that lies
 *   behind the channels: the variance is the biased one. Weight and bias are those of the channel.
 *
 *   x           in    [batch, channels, ...]   T         contiguous; two dimensions or more
 *   weight      in    [channels]               T or f32
 *   bias        in    [channels]               the weight's dtype
 *   y           out   as x                     T         may be x itself; any other overlap is LIGER_ERR_LAYOUT
 *   statistics  out   [2, batch · groups]      f32       mean, then rstd, of each group: keep it for backward; may be absent
 *   groups      number of groups, 1 or more; channels must be a multiple of it
 *
 *   T is f32, f16 or bf16. Arithmetic in f32, rounded once at the store. The variance is taken from the differences to the
 *   mean, not from E[x²] - mean², which cancels where the mean is large.
 *   Edges: where x has no elements the call succeeds and does nothing, but channels == 0 is LIGER_ERR_SHAPE; NaN and Inf stay
 *   in their group.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.  Workspace: of groups that several blocks share, see the query.
 *   Same inputs, same bits, any thread count.  Graph-capturable.  Since 0.9. */
typedef struct liger_group_norm_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor bias;
    liger_tensor y;
    liger_tensor statistics;
    int64_t groups;
    float epsilon;    /* >= 0 */
    int32_t reserved; /* 0 */
    void *workspace;  /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_group_norm_forward_args;

#define LIGER_GROUP_NORM_FORWARD_ARGS_INIT                                                                             \
    { .size = sizeof(liger_group_norm_forward_args), .epsilon = 1e-5f }

LIGER_API liger_status liger_group_norm_forward(liger_context *context, const liger_group_norm_forward_args *args,
                                                liger_stream stream);
LIGER_API liger_status liger_group_norm_forward_workspace(liger_context *context,
                                                          const liger_group_norm_forward_args *args, size_t *bytes);

/* liger_group_norm_backward    the gradients of liger_group_norm_forward
 *
 *   with g = dy · weight, n = (x - mean) · rstd and means over the group:
 *   dx = rstd · (g - mean(g) - n · mean(g·n))     dweight = Σ dy · n,  dbias = Σ dy  over all but the channels
 *
 *   dy          in    [batch, channels, ...]   T         the upstream gradient, contiguous
 *   x           in    [batch, channels, ...]   T         forward's input
 *   weight      in    [channels]               T or f32
 *   statistics  in    [2, batch · groups]      f32       forward's output
 *   dx          out   as x                     T         may be dy or x itself; absent: not computed
 *   dweight     out   [channels]               the weight's dtype; absent: not computed
 *   dbias       out   [channels]               likewise
 *   groups      as in forward
 *
 *   The mean is the one that is given, an f32: where it is large, its rounding, up to 2^-24 · |mean| · rstd, shifts every n of
 *   a group. (Forward carries what is missing; it is not among the statistics.)
 *   Sums are f32.  Edges: without elements dweight = dbias = 0.  Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.
 *   Workspace: sums over each channel of each sample, see the query.  Same inputs, same bits, any thread count.
 *   Graph-capturable.  Since 0.9. */
typedef struct liger_group_norm_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor statistics;
    liger_tensor dx;
    liger_tensor dweight;
    liger_tensor dbias;
    int64_t groups;
    void *workspace; /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_group_norm_backward_args;

#define LIGER_GROUP_NORM_BACKWARD_ARGS_INIT                                                                            \
    { .size = sizeof(liger_group_norm_backward_args) }

LIGER_API liger_status liger_group_norm_backward(liger_context *context, const liger_group_norm_backward_args *args,
                                                 liger_stream stream);
LIGER_API liger_status liger_group_norm_backward_workspace(liger_context *context,
                                                           const liger_group_norm_backward_args *args, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
