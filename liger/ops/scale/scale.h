/* scale.h - a tensor times one number that lives on the device. */
#ifndef LIGER_OPS_SCALE_H
#define LIGER_OPS_SCALE_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_scale     y = x · scale
 *
 *   x      in    any shape, contiguous     Tx
 *   scale  in    one element               f32   read on the device, so that nobody waits; absent: 1 (a cast)
 *   y      out   the shape of x            Ty    may be x itself: then nothing is moved when scale is 1
 *   target in    [rows], or absent         i32 or i64   x is rows of equal length, the gradient of a loss: one whose target is
 *                                          ignore_index has no part in it, and its zeros are zeros whatever scale is
 *
 *   Tx and Ty are f32, f16 or bf16. The product is f32, rounded once to Ty.
 *   Edges: no elements: succeeds and does nothing; NaN and Inf propagate, of scale too but for ignored rows.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_scale_args {
    size_t size;
    liger_tensor x;
    liger_tensor scale;
    liger_tensor y;
    liger_tensor target;
    int64_t ignore_index;
} liger_scale_args;

#define LIGER_SCALE_ARGS_INIT                                                                                          \
    { .size = sizeof(liger_scale_args) }

LIGER_API liger_status liger_scale(liger_context *context, const liger_scale_args *args, liger_stream stream);

#ifdef __cplusplus
}
#endif
#endif
