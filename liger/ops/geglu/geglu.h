/* geglu.h - the product of a GELU gate (tanh form) and an up projection, the middle of a gated MLP.
 *
 * N. Shazeer: GLU Variants Improve Transformer (2020); D. Hendrycks, K. Gimpel: Gaussian Error Linear Units (2016). */
#ifndef LIGER_OPS_GEGLU_H
#define LIGER_OPS_GEGLU_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_geglu_forward     y = gelu(gate) · up,   gelu(a) = ½·a·(1 + tanh u),   u = √(2/π)·(a + 0.044715·a³)
 *
 *   gate     in    [..., cols]   T         last dimension contiguous; leading ones fold into at most two row strides
 *   up       in    [..., cols]   T         likewise
 *   y        out   [..., cols]   T         may be gate or up itself; any other overlap is LIGER_ERR_LAYOUT
 *
 *   T is f32, f16 or bf16. gelu is computed in f32 with a³ as a·a·a and tanh within 2 ulp, and rounded to
 *   activation_dtype (0: T; f32: not at all); its product with up is rounded to T: what the separate operators of an
 *   unfused MLP do.
 *   Edges: no elements succeed and nothing is done; gelu(-1e4) is -0, gelu(1e4) is 1e4, gelu(-Inf) is NaN, gelu(Inf) is
 *   Inf, NaN propagates.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_geglu_forward_args {
    size_t size;
    liger_tensor gate;
    liger_tensor up;
    liger_tensor y;
    int32_t activation_dtype; /* liger_dtype; 0: T */
    int32_t reserved;         /* 0 */
} liger_geglu_forward_args;

#define LIGER_GEGLU_FORWARD_ARGS_INIT                                                                                  \
    { .size = sizeof(liger_geglu_forward_args) }

LIGER_API liger_status liger_geglu_forward(liger_context *context, const liger_geglu_forward_args *args,
                                           liger_stream stream);

/* liger_geglu_backward    the gradients of liger_geglu_forward, its roundings taken as the identity
 *
 *   dup = dy · gelu(gate)        dgate = dy · up · gelu'(gate)
 *   gelu'(a) = ½(1 + tanh u) + ½·a·(1 - tanh² u)·√(2/π)·(1 + 3·0.044715·a²)
 *
 *   dy, gate, up  in    [..., cols]   T
 *   dgate         out   [..., cols]   T    may be dy or gate itself; absent: not computed
 *   dup           out   [..., cols]   T    may be dy or up itself (not the one that dgate is); absent: not computed
 *
 *   As the separate operators of an unfused MLP do, gelu(gate) is rounded to T before its product with dy, and dy · up
 *   before its product with gelu'; everything else is f32 up to one rounding at each store. Halves of one
 *   [rows, 2·cols] buffer do not overlap.
 *   Edges: gelu'(1e30) is 1, gelu'(-1e30) is 0, gelu'(±Inf) is NaN. Otherwise, and errors, as forward.  Since 0.9. */
typedef struct liger_geglu_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor gate;
    liger_tensor up;
    liger_tensor dgate;
    liger_tensor dup;
} liger_geglu_backward_args;

#define LIGER_GEGLU_BACKWARD_ARGS_INIT                                                                                 \
    { .size = sizeof(liger_geglu_backward_args) }

LIGER_API liger_status liger_geglu_backward(liger_context *context, const liger_geglu_backward_args *args,
                                            liger_stream stream);

#ifdef __cplusplus
}
#endif
#endif
