/* relu_squared.h - the square of the positive part, an activation.
 *
 * D. R. So et al.: Primer: Searching for Efficient Transformers for Language Modeling (2021). */
#ifndef LIGER_OPS_RELU_SQUARED_H
#define LIGER_OPS_RELU_SQUARED_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_relu_squared_forward     y = max(x, 0)²
 *
 *   x        in    [..., cols]   T         last dimension contiguous; leading ones fold into at most two row strides
 *   y        out   [..., cols]   T         may be x itself; any other overlap is LIGER_ERR_LAYOUT
 *
 *   T is f32, f16 or bf16. Arithmetic in f32, rounded once at the store.
 *   Edges: no elements succeed and nothing is done; -Inf gives 0, NaN stays.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_relu_squared_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor y;
} liger_relu_squared_forward_args;

#define LIGER_RELU_SQUARED_FORWARD_ARGS_INIT                                                                           \
    { .size = sizeof(liger_relu_squared_forward_args) }

LIGER_API liger_status liger_relu_squared_forward(liger_context *context, const liger_relu_squared_forward_args *args,
                                                  liger_stream stream);

/* liger_relu_squared_backward    dx = 2 · max(x, 0) · dy
 *
 *   dy       in    [..., cols]   T
 *   x        in    [..., cols]   T         forward's input
 *   dx       out   [..., cols]   T         may be dy or x itself
 *
 *   Edges: 0 · Inf is NaN here too.  Otherwise, and errors, as forward.  Since 0.9. */
typedef struct liger_relu_squared_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor x;
    liger_tensor dx;
} liger_relu_squared_backward_args;

#define LIGER_RELU_SQUARED_BACKWARD_ARGS_INIT                                                                          \
    { .size = sizeof(liger_relu_squared_backward_args) }

LIGER_API liger_status liger_relu_squared_backward(liger_context *context, const liger_relu_squared_backward_args *args,
                                                   liger_stream stream);

#ifdef __cplusplus
}
#endif
#endif
