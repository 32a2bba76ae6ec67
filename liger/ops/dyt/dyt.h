/* dyt.h - dynamic tanh, which takes the place of a normalisation: y = gamma · tanh(alpha · x) + beta.
 *
 * J. Zhu, X. Chen, K. He, Y. LeCun, Z. Liu: Transformers without Normalization (2025). */
#ifndef LIGER_OPS_DYT_H
#define LIGER_OPS_DYT_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_dyt_forward     y = gamma · tanh(alpha · x) + beta
 *
 *   x        in    [..., cols]   T         last dimension contiguous; leading ones fold into at most two row strides
 *   alpha    in    one element   T or f32  read on the device
 *   gamma    in    [cols]        T or f32
 *   beta     in    [cols]        gamma's dtype; absent: zeros
 *   y        out   [..., cols]   T         may be x itself; any other overlap is LIGER_ERR_LAYOUT
 *
 *   T is f32, f16 or bf16. Arithmetic in f32, rounded once at the store. tanh is within 2 ulp; for 16-bit T on a GPU it is
 *   within 2^-19 of itself, seven bits behind what f16 keeps.
 *   Edges: no rows succeed and nothing is done; cols == 0 is LIGER_ERR_SHAPE; tanh(±Inf) is ±1, NaN propagates.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_dyt_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor alpha;
    liger_tensor gamma;
    liger_tensor beta;
    liger_tensor y;
} liger_dyt_forward_args;

#define LIGER_DYT_FORWARD_ARGS_INIT                                                                                    \
    { .size = sizeof(liger_dyt_forward_args) }

LIGER_API liger_status liger_dyt_forward(liger_context *context, const liger_dyt_forward_args *args,
                                         liger_stream stream);

/* liger_dyt_backward    the gradients of liger_dyt_forward
 *
 *   with t = tanh(alpha · x) and u = dy · gamma · (1 - t²):
 *   dx = alpha · u        dalpha = Σ u · x        dgamma = Σ_rows dy · t        dbeta = Σ_rows dy
 *
 *   dy       in    [..., cols]   T         the upstream gradient
 *   x        in    [..., cols]   T         forward's inputs
 *   alpha    in    one element   T or f32
 *   gamma    in    [cols]        T or f32
 *   dx       out   [..., cols]   T         may be dy or x itself; absent: not computed
 *   dalpha   out   one element   alpha's dtype; absent: not computed
 *   dgamma   out   [cols]        gamma's dtype; absent: not computed
 *   dbeta    out   [cols]        likewise
 *
 *   1 - t² is taken from e^(-2|alpha·x|) and does not cancel. Sums are f32.
 *   Edges: rows == 0 gives zeros to the parameters; an infinite x makes dalpha NaN.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.
 *   Workspace: partial sums of the parameters' gradients, see the query.  Same inputs, same bits, any thread count.
 *   Graph-capturable.  Since 0.9. */
typedef struct liger_dyt_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor x;
    liger_tensor alpha;
    liger_tensor gamma;
    liger_tensor dx;
    liger_tensor dalpha;
    liger_tensor dgamma;
    liger_tensor dbeta;
    void *workspace; /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_dyt_backward_args;

#define LIGER_DYT_BACKWARD_ARGS_INIT                                                                                   \
    { .size = sizeof(liger_dyt_backward_args) }

LIGER_API liger_status liger_dyt_backward(liger_context *context, const liger_dyt_backward_args *args,
                                          liger_stream stream);
LIGER_API liger_status liger_dyt_backward_workspace(liger_context *context, const liger_dyt_backward_args *args,
                                                    size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
