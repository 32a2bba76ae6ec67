/* rope.h - rotary position embedding of query and key heads, first half paired with second half.
 *
 * J. Su and others: RoFormer: Enhanced Transformer with Rotary Position Embedding (2021). */
#ifndef LIGER_OPS_ROPE_H
#define LIGER_OPS_ROPE_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_rope_forward     with h = rotary/2, for p in [0, h):
 *
 *   q_out[p] = q[p]·cos[p] - q[p+h]·sin[p]        q_out[p+h] = q[p+h]·cos[p] + q[p]·sin[p]        the same for k
 *
 *   q        in    [batch, q_heads, seq, dim]   T         dim contiguous, any stride of batch, heads and seq
 *   k        in    [batch, k_heads, seq, dim]   T         likewise; absent, together with k_out: q only
 *   cos, sin in    [batch or 1, seq, >= h] or [seq, >= h]   both T or both f32; last dimension contiguous; only the
 *                  first h columns are read; a batch of 1, two dimensions or a batch stride of 0 serve every batch
 *                  with sections: [3, batch or 1, seq, >= h], three planes of angles
 *   q_out    out   as q   may be q itself (the very same view)
 *   k_out    out   as k   may be k itself; any other overlap is LIGER_ERR_LAYOUT
 *                         (heads of q and k side by side in one fused projection do not overlap)
 *
 *   T is f32, f16 or bf16. rotary is even, 0 <= rotary <= dim; elements [rotary, dim) pass through unchanged.
 *   operand_dtype: 0, or the float dtype that q and k are rounded to after the load (a caller whose tables were made in
 *   a narrower dtype than q passes them widened to f32, and their dtype here); what passes through is not rounded.
 *   temporal, height, width: all 0, or sections of the h columns, whose sum is h, for positions with three coordinates
 *   (M-RoPE): the first `temporal` columns of cos and sin are those of plane 0, the next `height` those of plane 1, the
 *   last `width` those of plane 2.
 *   Arithmetic in f32: two products and their sum, each rounded to f32 (no fused multiply-add), so that every backend
 *   gives the same bits; rounded once to T at the store.
 *   Edges: an empty q and k succeed and nothing is done; NaN and Inf propagate within their pair.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.
 *   Since 0.9. */
typedef struct liger_rope_forward_args {
    size_t size;
    liger_tensor q;
    liger_tensor k;
    liger_tensor cos;
    liger_tensor sin;
    liger_tensor q_out;
    liger_tensor k_out;
    int64_t rotary;
    int32_t operand_dtype; /* liger_dtype; 0: no rounding after the load */
    int32_t reserved;      /* 0 */
    int64_t temporal;      /* sections of the columns; all 0: none */
    int64_t height;
    int64_t width;
} liger_rope_forward_args;

#define LIGER_ROPE_FORWARD_ARGS_INIT                                                                                   \
    { .size = sizeof(liger_rope_forward_args) }

LIGER_API liger_status liger_rope_forward(liger_context *context, const liger_rope_forward_args *args,
                                          liger_stream stream);

/* liger_rope_backward    the gradients with respect to q and k: the rotation by the opposite angle, sin → -sin
 *
 *   dq, dk          in    upstream gradients, shaped as q and k; dk absent together with dk_out
 *   cos, sin        in    forward's
 *   dq_out, dk_out  out   the gradients of q and k; dq_out may be dq itself, dk_out may be dk itself
 *
 *   Everything else as liger_rope_forward; operand_dtype rounds dq and dk after the load. */
typedef struct liger_rope_backward_args {
    size_t size;
    liger_tensor dq;
    liger_tensor dk;
    liger_tensor cos;
    liger_tensor sin;
    liger_tensor dq_out;
    liger_tensor dk_out;
    int64_t rotary;
    int32_t operand_dtype; /* liger_dtype; 0: no rounding after the load */
    int32_t reserved;      /* 0 */
    int64_t temporal;      /* sections of the columns; all 0: none */
    int64_t height;
    int64_t width;
} liger_rope_backward_args;

#define LIGER_ROPE_BACKWARD_ARGS_INIT                                                                                  \
    { .size = sizeof(liger_rope_backward_args) }

LIGER_API liger_status liger_rope_backward(liger_context *context, const liger_rope_backward_args *args,
                                           liger_stream stream);

#ifdef __cplusplus
}
#endif
#endif
