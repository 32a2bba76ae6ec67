/* sparsemax.h - the nearest point of the simplex, over the last dimension, of any width: as a softmax, but most of it is 0. */
#ifndef LIGER_OPS_SPARSEMAX_H
#define LIGER_OPS_SPARSEMAX_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_sparsemax_forward     y_j = max(x_j - tau, 0), where tau makes each row sum to 1
 *
 *   x        in    [..., cols]   T         last dimension contiguous; leading ones fold into at most two row strides
 *   y        out   [..., cols]   T         may be x itself; any other overlap is LIGER_ERR_LAYOUT
 *   support  out   [rows, (cols + 31) / 32]   i32   contiguous; rows is the product of the leading dimensions. Element j of
 *                                          a row has bit j % 32 of word j / 32: is x_j > tau? Bits behind the row are 0
 *
 *   T is f32, f16 or bf16. The support is found exactly, by as many steps of Newton's method as it takes until it stays as
 *   it is: sums of the f32 values are kept to 48 bits or more, so that an element belongs to it if it does in double
 *   precision. y is rounded once, and may be 0 where the support has a bit.
 *   Edges: no elements succeed and nothing is done; x_j = -Inf gives 0. A row of nothing else, or with a NaN or +Inf in it,
 *   is NaN, and all of it is its support: a backward passes on what comes from above.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_sparsemax_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor y;
    liger_tensor support;
} liger_sparsemax_forward_args;

#define LIGER_SPARSEMAX_FORWARD_ARGS_INIT                                                                              \
    { .size = sizeof(liger_sparsemax_forward_args) }

LIGER_API liger_status liger_sparsemax_forward(liger_context *context, const liger_sparsemax_forward_args *args,
                                               liger_stream stream);

/* liger_sparsemax_backward    dx_j = dy_j - mean of dy over the support, for a j of the support, else 0
 *
 *   dy       in    [..., cols]   T         not read where the support has nothing: a NaN there does not matter
 *   support  in    [rows, (cols + 31) / 32]   i32   forward's result. Bits behind the row do not matter
 *   dx       out   [..., cols]   T         may be dy itself
 *
 *   Edges and errors as forward; a row without support, which forward never gives, is 0. */
typedef struct liger_sparsemax_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor support;
    liger_tensor dx;
} liger_sparsemax_backward_args;

#define LIGER_SPARSEMAX_BACKWARD_ARGS_INIT                                                                             \
    { .size = sizeof(liger_sparsemax_backward_args) }

LIGER_API liger_status liger_sparsemax_backward(liger_context *context, const liger_sparsemax_backward_args *args,
                                                liger_stream stream);

#ifdef __cplusplus
}
#endif
#endif
