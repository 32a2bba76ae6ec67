/* attn_res.h - attention over the residual stream: a token mixes what the blocks before it have put there. */
#ifndef LIGER_OPS_ATTN_RES_H
#define LIGER_OPS_ATTN_RES_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_attn_res_forward     h = Σ_n α_n · v_n,   α = softmax_n(⟨query, k_n⟩),   k_n = v_n · rstd_n · norm
 *                            rstd_n = 1/√(mean(v_n²) + epsilon)
 *
 *   v        in    [blocks, ..., cols]  T         n is the first dimension; last dimension contiguous; leading ones fold into
 *                                                 at most two row strides
 *   query    in    [cols]               T or f32  contiguous
 *   norm     in    [cols]               T or f32  contiguous; v_n · rstd_n is rounded to normal_dtype before the product
 *   h        out   [..., cols]          T
 *   alpha    out   [blocks · rows]      f32       of block n and row r at n · rows + r: keep it for the backward call
 *   rstd     out   [blocks · rows]      f32       likewise
 *
 *   T is f32, f16 or bf16. Arithmetic in f32, rounded once at the store. Any number of blocks, 1 or more where there are rows.
 *   Edges: rows == 0 succeeds and does nothing; cols == 0 is LIGER_ERR_SHAPE; NaN and Inf propagate.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_attn_res_forward_args {
    size_t size;
    liger_tensor v;
    liger_tensor query;
    liger_tensor norm;
    liger_tensor h;
    liger_tensor alpha;
    liger_tensor rstd;
    float epsilon;        /* >= 0 */
    int32_t normal_dtype; /* what v_n · rstd_n is rounded to; 0: the norm's dtype */
} liger_attn_res_forward_args;

#define LIGER_ATTN_RES_FORWARD_ARGS_INIT                                                                               \
    { .size = sizeof(liger_attn_res_forward_args), .epsilon = 1e-6f }

LIGER_API liger_status liger_attn_res_forward(liger_context *context, const liger_attn_res_forward_args *args,
                                              liger_stream stream);

/* liger_attn_res_backward    the gradients of liger_attn_res_forward
 *
 *   with x̂_n = v_n · rstd_n, u = query · norm, and ds_n = α_n · (⟨dh, v_n⟩ - Σ_m α_m ⟨dh, v_m⟩):
 *   dv_n = α_n · dh + ds_n · rstd_n · (u - x̂_n · mean(u · x̂_n))
 *   dquery = norm · Σ ds_n · x̂_n        dnorm = query · Σ ds_n · x̂_n        (x̂ as forward has rounded it)
 *
 *   dh           in    [..., cols]           T
 *   v            in    [blocks, ..., cols]   T
 *   query, norm, alpha, rstd   in            as in forward, and forward's outputs
 *   dv           out   [blocks, ..., cols]   T     may be v itself; absent: not computed
 *   dquery       out   [cols]                the query's dtype; absent: not computed
 *   dnorm        out   [cols]                the norm's dtype; absent: not computed
 *
 *   Sums are f32.  Edges: rows == 0 gives zeros.  Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.
 *   Workspace: two numbers of each block and row, and partial sums, see the query.  Same inputs, same bits, any thread count.
 *   Graph-capturable. */
typedef struct liger_attn_res_backward_args {
    size_t size;
    liger_tensor dh;
    liger_tensor v;
    liger_tensor query;
    liger_tensor norm;
    liger_tensor alpha;
    liger_tensor rstd;
    liger_tensor dv;
    liger_tensor dquery;
    liger_tensor dnorm;
    int32_t normal_dtype; /* as in forward */
    int32_t reserved;     /* 0 */
    void *workspace;      /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_attn_res_backward_args;

#define LIGER_ATTN_RES_BACKWARD_ARGS_INIT                                                                              \
    { .size = sizeof(liger_attn_res_backward_args) }

LIGER_API liger_status liger_attn_res_backward(liger_context *context, const liger_attn_res_backward_args *args,
                                               liger_stream stream);
LIGER_API liger_status liger_attn_res_backward_workspace(liger_context *context,
                                                         const liger_attn_res_backward_args *args, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
