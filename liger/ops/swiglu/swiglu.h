/* swiglu.h - the product of a SiLU gate and an up projection, the middle of a gated MLP.
 *
 * N. Shazeer: GLU Variants Improve Transformer (2020). The fused form, one [rows, 2·cols] projection with the gate in
 * its first half, is the same function on two views of one buffer. */
#ifndef LIGER_OPS_SWIGLU_H
#define LIGER_OPS_SWIGLU_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_swiglu_forward     y = silu(gate_multiplier · gate) · up · down_multiplier,   silu(g) = g/(1 + e^-g)
 *
 *   gate     in    [..., cols]   T         last dimension contiguous; leading ones fold into at most two row strides
 *   up       in    [..., cols]   T         likewise
 *   y        out   [..., cols]   T         may be gate or up itself; any other overlap is LIGER_ERR_LAYOUT
 *
 *   T is f32, f16 or bf16. silu is computed in f32, within 4 ulp where e^-g is finite (below g = -87: 0 or nearly), and
 *   rounded to activation_dtype (0: T; f32: not at all); its product with up is rounded to T; if down_multiplier is
 *   not 1, the product of that with down_multiplier is rounded to T once more: what the separate
 *   operators of an unfused MLP do.
 *   Edges: no elements succeed and nothing is done; silu(-1e4) is -0, silu(1e4) is 1e4, silu(-Inf) is NaN, silu(Inf)
 *   is Inf, NaN propagates.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.
 *   Since 0.9. */
typedef struct liger_swiglu_forward_args {
    size_t size;
    liger_tensor gate;
    liger_tensor up;
    liger_tensor y;
    float gate_multiplier;
    float down_multiplier;
    int32_t activation_dtype; /* liger_dtype; 0: T */
    int32_t reserved;         /* 0 */
} liger_swiglu_forward_args;

#define LIGER_SWIGLU_FORWARD_ARGS_INIT                                                                                 \
    { .size = sizeof(liger_swiglu_forward_args), .gate_multiplier = 1.0f, .down_multiplier = 1.0f }

LIGER_API liger_status liger_swiglu_forward(liger_context *context, const liger_swiglu_forward_args *args,
                                            liger_stream stream);

/* liger_swiglu_backward    the gradients of liger_swiglu_forward, its roundings taken as the identity
 *
 *   with g = gate_multiplier · gate, s = 1/(1 + e^-g), dc = dy · down_multiplier:
 *   dup = dc · g·s        dgate = gate_multiplier · dc · up · (g·s·(1 - s) + s)
 *
 *   dy, gate, up  in    [..., cols]   T
 *   dgate         out   [..., cols]   T    may be dy or gate itself; absent: not computed
 *   dup           out   [..., cols]   T    may be dy or up itself (not the one that dgate is); absent: not computed
 *
 *   Everything is f32 up to one rounding at each store. Halves of one [rows, 2·cols] buffer do not overlap.
 *   Edges and errors as forward. */
typedef struct liger_swiglu_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor gate;
    liger_tensor up;
    liger_tensor dgate;
    liger_tensor dup;
    float gate_multiplier;
    float down_multiplier;
} liger_swiglu_backward_args;

#define LIGER_SWIGLU_BACKWARD_ARGS_INIT                                                                                \
    { .size = sizeof(liger_swiglu_backward_args), .gate_multiplier = 1.0f, .down_multiplier = 1.0f }

LIGER_API liger_status liger_swiglu_backward(liger_context *context, const liger_swiglu_backward_args *args,
                                             liger_stream stream);

#ifdef __cplusplus
}
#endif
#endif
