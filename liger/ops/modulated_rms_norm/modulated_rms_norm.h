/* modulated_rms_norm.h - RMSNorm whose result is scaled and shifted by what belongs to a group of rows.
 *
 * W. Peebles, S. Xie: Scalable Diffusion Models with Transformers (2022): adaptive normalisation, a group being a sample. */
#ifndef LIGER_OPS_MODULATED_RMS_NORM_H
#define LIGER_OPS_MODULATED_RMS_NORM_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_modulated_rms_norm_forward     y = (1 + scale_g) · RMSNorm(x) + shift_g,   RMSNorm(x) = x · rstd · (weight + offset)
 *
 *   x        in    [..., cols]      T         `rows` rows; last dimension contiguous
 *   weight   in    [cols]           T or f32  absent: RMSNorm(x) = x · rstd
 *   scale    in    [..., cols]      T or f32  contiguous; its rows are `groups`, which divide rows: row n of x is of group
 *                                             g = n / (rows / groups)
 *   shift    in    [..., cols]      T or f32  contiguous, as many rows; absent: 0
 *   y        out   [..., cols]      T         may be x itself; any other overlap is LIGER_ERR_LAYOUT
 *   rstd     out   [rows]           f32       1/√(mean(x²) + epsilon): keep it for the backward call; may be absent
 *
 *   Arithmetic in f32, rounded once at the store but for what `casting` (liger_casting, rms_norm.h) names: LLAMA rounds x·rstd
 *   to T, GEMMA RMSNorm(x) to T, NONE epsilon, offset and rstd, and weight + offset where the weight is T.
 *   Edges: rows == 0 succeeds and does nothing; cols == 0 is LIGER_ERR_SHAPE; NaN and Inf propagate.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_modulated_rms_norm_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor scale;
    liger_tensor shift;
    liger_tensor y;
    liger_tensor rstd;
    float epsilon; /* >= 0 */
    float offset;
    int32_t casting;  /* liger_casting */
    int32_t reserved; /* 0 */
} liger_modulated_rms_norm_forward_args;

#define LIGER_MODULATED_RMS_NORM_FORWARD_ARGS_INIT                                                                     \
    { .size = sizeof(liger_modulated_rms_norm_forward_args), .epsilon = 1e-6f }

LIGER_API liger_status liger_modulated_rms_norm_forward(liger_context *context,
                                                        const liger_modulated_rms_norm_forward_args *args,
                                                        liger_stream stream);

/* liger_modulated_rms_norm_backward    the gradients of liger_modulated_rms_norm_forward
 *
 *   with m = dy · (1 + scale_g) · (weight + offset) and the sums over a group  A_g = Σ dy · x·rstd:
 *   dx = rstd·m - x · rstd³/cols · Σ m·x
 *   dweight = Σ_g (1 + scale_g) · A_g          dscale_g = Σ dy · RMSNorm(x)          dshift_g = Σ dy
 *
 *   dy, x             in    [..., cols]   T
 *   weight, scale     in                  as in forward
 *   rstd              in    [rows]        f32   forward's output
 *   dx                out   [..., cols]   T     may be dy itself; absent: not computed
 *   dweight           out   [cols]        the weight's dtype (f32 without a weight); absent: not computed
 *   dscale            out   as scale      the scale's dtype; absent: not computed
 *   dshift            out   [..., cols]   T or f32, as many rows as scale; absent: not computed
 *
 *   Sums are f32; in LLAMA casting x·rstd is rounded to T before it enters them, and RMSNorm(x) is that of forward, with all
 *   the roundings that `casting` names.
 *   Edges: rows == 0 gives zeros.  Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.
 *   Workspace: partial sums, see the query.  Same inputs, same bits, any thread count.  Graph-capturable. */
typedef struct liger_modulated_rms_norm_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor scale;
    liger_tensor rstd;
    liger_tensor dx;
    liger_tensor dweight;
    liger_tensor dscale;
    liger_tensor dshift;
    float offset;
    int32_t casting; /* liger_casting, the one of forward */
    void *workspace; /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_modulated_rms_norm_backward_args;

#define LIGER_MODULATED_RMS_NORM_BACKWARD_ARGS_INIT                                                                    \
    { .size = sizeof(liger_modulated_rms_norm_backward_args) }

LIGER_API liger_status liger_modulated_rms_norm_backward(liger_context *context,
                                                         const liger_modulated_rms_norm_backward_args *args,
                                                         liger_stream stream);
LIGER_API liger_status liger_modulated_rms_norm_backward_workspace(liger_context *context,
                                                                   const liger_modulated_rms_norm_backward_args *args,
                                                                   size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
