/* layer_norm.h - normalisation of each row to mean 0 and variance 1, with a weight and a bias for each column.
 *
 * J. L. Ba, J. R. Kiros, G. E. Hinton: Layer Normalization (2016). */
#ifndef LIGER_OPS_LAYER_NORM_H
#define LIGER_OPS_LAYER_NORM_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_layer_norm_forward     y = (x - mean) · rstd · weight + bias
 *
 *   with mean = mean(x) and rstd = 1/√(mean((x - mean)²) + epsilon) of each row: the variance is the biased one.
 *
 *   x        in    [..., cols]   T         last dimension contiguous; leading ones fold into at most two row strides
 *   weight   in    [cols]        T or f32  absent: ones
 *   bias     in    [cols]        the weight's dtype (without a weight T or f32); absent: zeros
 *   y        out   [..., cols]   T         may be x itself; any other overlap is LIGER_ERR_LAYOUT
 *   mean     out   [rows]        f32       keep both for the backward call; each may be absent
 *   rstd     out   [rows]        f32
 *
 *   T is f32, f16 or bf16. Arithmetic in f32, rounded once at the store. The variance is taken from the differences to the
 *   mean, not from E[x²] - mean², which cancels where the mean is large.
 *   Edges: rows == 0 succeeds and does nothing; cols == 0 is LIGER_ERR_SHAPE; NaN and Inf propagate.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_layer_norm_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor bias;
    liger_tensor y;
    liger_tensor mean;
    liger_tensor rstd;
    float epsilon;    /* >= 0 */
    int32_t reserved; /* 0 */
} liger_layer_norm_forward_args;

#define LIGER_LAYER_NORM_FORWARD_ARGS_INIT                                                                             \
    { .size = sizeof(liger_layer_norm_forward_args), .epsilon = 1e-5f }

LIGER_API liger_status liger_layer_norm_forward(liger_context *context, const liger_layer_norm_forward_args *args,
                                                liger_stream stream);

/* liger_layer_norm_backward    the gradients of liger_layer_norm_forward
 *
 *   with g = dy · weight and n = (x - mean) · rstd:
 *   dx = rstd · (g - mean(g) - n · mean(g·n))        dweight = Σ_rows dy · n        dbias = Σ_rows dy
 *
 *   dy       in    [..., cols]   T         the upstream gradient
 *   x        in    [..., cols]   T         forward's input
 *   weight   in    [cols]        T or f32  absent if it was in forward
 *   mean     in    [rows]        f32       forward's outputs
 *   rstd     in    [rows]        f32
 *   dx       out   [..., cols]   T         may be dy itself; absent: not computed
 *   dweight  out   [cols]        the weight's dtype (f32 without a weight); absent: not computed
 *   dbias    out   [cols]        likewise
 *
 *   Sums over rows and columns are f32.
 *   Edges: rows == 0 gives dweight = dbias = 0.  Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.
 *   Workspace: partial sums of dweight and dbias, see the query.  Same inputs, same bits, any thread count.
 *   Graph-capturable.  Since 0.9. */
typedef struct liger_layer_norm_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor mean;
    liger_tensor rstd;
    liger_tensor dx;
    liger_tensor dweight;
    liger_tensor dbias;
    void *workspace; /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_layer_norm_backward_args;

#define LIGER_LAYER_NORM_BACKWARD_ARGS_INIT                                                                            \
    { .size = sizeof(liger_layer_norm_backward_args) }

LIGER_API liger_status liger_layer_norm_backward(liger_context *context, const liger_layer_norm_backward_args *args,
                                                 liger_stream stream);
LIGER_API liger_status liger_layer_norm_backward_workspace(liger_context *context,
                                                           const liger_layer_norm_backward_args *args, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
