/* softmax.h - softmax over the last dimension, of any width. */
#ifndef LIGER_OPS_SOFTMAX_H
#define LIGER_OPS_SOFTMAX_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_softmax_forward     y_j = exp(x_j - max x) / Σ_k exp(x_k - max x)
 *
 *   x        in    [..., cols]   T         last dimension contiguous; leading ones fold into at most two row strides
 *   y        out   [..., cols]   T         may be x itself; any other overlap is LIGER_ERR_LAYOUT
 *
 *   T is f32, f16 or bf16. Arithmetic in f32, rounded once at the store.
 *   Edges: no elements succeed and nothing is done; x_j = -Inf gives 0, but a row of nothing else, or with a NaN or +Inf in
 *   it, is NaN.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_softmax_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor y;
} liger_softmax_forward_args;

#define LIGER_SOFTMAX_FORWARD_ARGS_INIT                                                                                \
    { .size = sizeof(liger_softmax_forward_args) }

LIGER_API liger_status liger_softmax_forward(liger_context *context, const liger_softmax_forward_args *args,
                                             liger_stream stream);

/* liger_softmax_backward    dx_j = y_j · (dy_j - Σ_k y_k · dy_k)
 *
 *   dy       in    [..., cols]   T
 *   y        in    [..., cols]   T         forward's result, as it was rounded
 *   dx       out   [..., cols]   T         may be dy or y itself
 *
 *   Edges and errors as forward. */
typedef struct liger_softmax_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor y;
    liger_tensor dx;
} liger_softmax_backward_args;

#define LIGER_SOFTMAX_BACKWARD_ARGS_INIT                                                                               \
    { .size = sizeof(liger_softmax_backward_args) }

LIGER_API liger_status liger_softmax_backward(liger_context *context, const liger_softmax_backward_args *args,
                                              liger_stream stream);

#ifdef __cplusplus
}
#endif
#endif
