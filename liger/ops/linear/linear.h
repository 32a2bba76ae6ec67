/* linear.h - the products of a linear layer, for losses on a head whose logits come and go in pieces: results in f32, and sums
 * over pieces. */
#ifndef LIGER_OPS_LINEAR_H
#define LIGER_OPS_LINEAR_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_linear_forward     y = x·weightᵀ (+ bias)
 *
 *   x          in       [rows, hidden]   T          last dimension contiguous, rows may have gaps
 *   weight     in       [vocab, hidden]  T
 *   bias       in       [vocab]          T          may be absent
 *   y          out      [rows, vocab]    T or f32   last dimension contiguous, rows may have gaps
 *   workspace  scratch  liger_linear_forward_workspace() bytes, 256-byte aligned
 *
 *   T is f32, f16 or bf16. Sums in f32, rounded once to y's dtype, the bias among them.
 *   Edges: rows == 0 or vocab == 0 succeeds and does nothing; hidden == 0 leaves the bias, or zeros. NaN and Inf propagate.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.  Same inputs, same bits (with an f32 BLAS: for one thread count).
 *   Graph-capturable.  Since 0.9. */
typedef struct liger_linear_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor bias;
    liger_tensor y;
    void *workspace;
    size_t workspace_bytes;
} liger_linear_forward_args;

#define LIGER_LINEAR_FORWARD_ARGS_INIT                                                                                 \
    { .size = sizeof(liger_linear_forward_args) }

LIGER_API liger_status liger_linear_forward(liger_context *context, const liger_linear_forward_args *args,
                                            liger_stream stream);
LIGER_API liger_status liger_linear_forward_workspace(liger_context *context, const liger_linear_forward_args *args,
                                                      size_t *bytes);

/* liger_linear_backward     dx = dy·weight     dweight (+)= dyᵀ·x     dbias (+)= Σ dy over rows
 *
 *   dy          in       [rows, vocab]    T          last dimension contiguous, rows may have gaps
 *   x           in       [rows, hidden]   T          likewise
 *   weight      in       [vocab, hidden]  T
 *   dx          out      [rows, hidden]   T          rows may have gaps; may be absent, as every output
 *   dweight     out      [vocab, hidden]  T or f32
 *   dbias       out      [vocab]          f32
 *   accumulate           0, or 1: added to what is in dweight and dbias, the sums of other rows
 *   workspace   scratch  liger_linear_backward_workspace() bytes, 256-byte aligned
 *
 *   Sums in f32, rounded once; a dweight of 16 bits that is added to is rounded at every call.
 *   Edges: rows == 0 gives zeros, or with accumulate changes nothing. Else as forward, errors and promises too. */
typedef struct liger_linear_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor dx;
    liger_tensor dweight;
    liger_tensor dbias;
    int32_t accumulate;
    int32_t reserved;
    void *workspace;
    size_t workspace_bytes;
} liger_linear_backward_args;

#define LIGER_LINEAR_BACKWARD_ARGS_INIT                                                                                \
    { .size = sizeof(liger_linear_backward_args) }

LIGER_API liger_status liger_linear_backward(liger_context *context, const liger_linear_backward_args *args,
                                             liger_stream stream);
LIGER_API liger_status liger_linear_backward_workspace(liger_context *context, const liger_linear_backward_args *args,
                                                       size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
