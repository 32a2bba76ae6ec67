/* mhc.h - manifold-constrained hyper-connections: a residual stream of several lanes, which a layer reads from and writes to
 * through coefficients of each token. Their matrix is doubly stochastic, made so by Sinkhorn's iteration.
 *
 * Z. Xie et al.: mHC: Manifold-Constrained Hyper-Connections (2025); R. Sinkhorn, P. Knopp: Concerning nonnegative matrices
 * and doubly stochastic matrices (1967). */
#ifndef LIGER_OPS_MHC_H
#define LIGER_OPS_MHC_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of all functions here: tokens N = the product of the leading dimensions, streams hc from 1 to 1024,
 * columns c >= 1, k = hc · c, m = hc · (hc + 2); N < 2^31. T is f32, f16 or bf16. Tensors are contiguous. Arithmetic and sums in f32, rounded once at the
 * store. N == 0 succeeds; NaN and Inf propagate. Same inputs, same bits, any thread count. Graph-capturable. Since 0.9. */

/* liger_mhc_coeffs_forward     the coefficients of each token, and what the layer reads
 *
 *   rstd   = 1/√(mean_k(x²) + rms_eps)          mix = (x · phi) · rstd
 *   h_pre  = σ(mix[:hc] · alpha_pre + b[:hc]) + pre_eps
 *   h_post = σ(mix[hc:2hc] · alpha_post + b[hc:2hc]) · post_mult
 *   h_res: a = softmax over in of (mix[2hc:] · alpha_res + b[2hc:]) seen as [out, in], plus sinkhorn_eps;
 *            a /= sums over out + sinkhorn_eps; then tmax - 1 times: a /= sums over in + sinkhorn_eps, a /= sums over out +
 *            sinkhorn_eps
 *   x_in   = Σ_s h_pre[s] · x[s]
 *
 *   x                  in   [..., hc, c]   T
 *   phi                in   [k, m]         T or f32; with T the products are exact, on tensor cores where there are any
 *   b                  in   [m]            f32
 *   alpha_pre, alpha_post, alpha_res  in   one element, f32
 *   h_pre, h_post      out  [..., hc]      f32
 *   h_res              out  [..., hc, hc]  f32
 *   x_in               out  [..., c]       T      absent: not computed
 *   mix                out  [N, m]         f32    keep it for the backward call
 *   rstd               out  [N]            f32    likewise
 *
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.  Workspace: phi in another order and partial sums, see the query. */
typedef struct liger_mhc_coeffs_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor phi;
    liger_tensor b;
    liger_tensor alpha_pre;
    liger_tensor alpha_post;
    liger_tensor alpha_res;
    liger_tensor h_pre;
    liger_tensor h_post;
    liger_tensor h_res;
    liger_tensor x_in;
    liger_tensor mix;
    liger_tensor rstd;
    int64_t tmax;                                    /* 1 to 65536 */
    float rms_eps, pre_eps, sinkhorn_eps, post_mult; /* rms_eps and sinkhorn_eps >= 0 */
    void *workspace;                                 /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_mhc_coeffs_forward_args;

#define LIGER_MHC_COEFFS_FORWARD_ARGS_INIT                                                                             \
    {                                                                                                                  \
        .size = sizeof(liger_mhc_coeffs_forward_args), .tmax = 20, .rms_eps = 1e-6f, .sinkhorn_eps = 1e-6f,            \
        .post_mult = 2.0f                                                                                              \
    }

LIGER_API liger_status liger_mhc_coeffs_forward(liger_context *context, const liger_mhc_coeffs_forward_args *args,
                                                liger_stream stream);
LIGER_API liger_status liger_mhc_coeffs_forward_workspace(liger_context *context,
                                                          const liger_mhc_coeffs_forward_args *args, size_t *bytes);

/* liger_mhc_coeffs_backward    the exact gradients of liger_mhc_coeffs_forward
 *
 *   Each normalisation a' = a/(s + eps) is differentiated as g = (g' - Σ g' · a')/(s + eps), on the matrices recomputed from
 *   mix. With dmix = alpha · dlogits:
 *   dx   = dx_so_far + rstd · (dmix · phiᵀ) - x · rstd²/k · Σ dmix · mix + h_pre · dx_in
 *   dphi = xᵀ · (rstd · dmix)       db = Σ dlogits       dalpha = Σ dlogits · mix
 *
 *   x, phi, b, alpha_pre, alpha_post, alpha_res, mix, rstd   in   as in forward, and forward's outputs
 *   dh_pre, dh_post    in   [..., hc]      f32    absent: zeros
 *   dh_res             in   [..., hc, hc]  f32    absent: zeros
 *   dx_in              in   [..., c]       T      the gradient of x_in; absent: zeros
 *   dx_so_far          in   [..., hc, c]   T      what dx begins with, the gradient that x has elsewhere; absent: zeros
 *   dx                 out  [..., hc, c]   T      may be dx_so_far; absent: not computed
 *   dphi               out  [k, m]                the dtype of phi; absent: not computed
 *   db                 out  [m]            f32    absent: not computed
 *   dalpha_pre, dalpha_post, dalpha_res   out   one element, f32   absent: not computed
 *
 *   Edges: N == 0 gives zeros.  Errors and workspace as forward: two numbers of each token's m, and partial sums. */
typedef struct liger_mhc_coeffs_backward_args {
    size_t size;
    liger_tensor x;
    liger_tensor phi;
    liger_tensor b;
    liger_tensor alpha_pre;
    liger_tensor alpha_post;
    liger_tensor alpha_res;
    liger_tensor mix;
    liger_tensor rstd;
    liger_tensor dh_pre;
    liger_tensor dh_post;
    liger_tensor dh_res;
    liger_tensor dx_in;
    liger_tensor dx_so_far;
    liger_tensor dx;
    liger_tensor dphi;
    liger_tensor db;
    liger_tensor dalpha_pre;
    liger_tensor dalpha_post;
    liger_tensor dalpha_res;
    int64_t tmax;                           /* as in forward */
    float pre_eps, sinkhorn_eps, post_mult; /* as in forward */
    int32_t reserved;                       /* 0 */
    void *workspace;
    size_t workspace_bytes;
} liger_mhc_coeffs_backward_args;

#define LIGER_MHC_COEFFS_BACKWARD_ARGS_INIT                                                                            \
    { .size = sizeof(liger_mhc_coeffs_backward_args), .tmax = 20, .sinkhorn_eps = 1e-6f, .post_mult = 2.0f }

LIGER_API liger_status liger_mhc_coeffs_backward(liger_context *context, const liger_mhc_coeffs_backward_args *args,
                                                 liger_stream stream);
LIGER_API liger_status liger_mhc_coeffs_backward_workspace(liger_context *context,
                                                           const liger_mhc_coeffs_backward_args *args, size_t *bytes);

/* liger_mhc_pre_forward        y = Σ_s h_pre[s] · x[s]
 *
 *   x                  in   [..., hc, c]   T
 *   h_pre              in   [..., hc]      f32
 *   y                  out  [..., c]       T
 *
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none. */
typedef struct liger_mhc_pre_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor h_pre;
    liger_tensor y;
} liger_mhc_pre_forward_args;

#define LIGER_MHC_PRE_FORWARD_ARGS_INIT                                                                                \
    { .size = sizeof(liger_mhc_pre_forward_args) }

LIGER_API liger_status liger_mhc_pre_forward(liger_context *context, const liger_mhc_pre_forward_args *args,
                                             liger_stream stream);

/* liger_mhc_pre_backward       dx[s] = h_pre[s] · dy        dh_pre[s] = ⟨dy, x[s]⟩
 *
 *   dy                 in   [..., c]       T
 *   x, h_pre           in                  as in forward
 *   dx                 out  [..., hc, c]   T      absent: not computed
 *   dh_pre             out  [..., hc]      f32    absent: not computed */
typedef struct liger_mhc_pre_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor x;
    liger_tensor h_pre;
    liger_tensor dx;
    liger_tensor dh_pre;
} liger_mhc_pre_backward_args;

#define LIGER_MHC_PRE_BACKWARD_ARGS_INIT                                                                               \
    { .size = sizeof(liger_mhc_pre_backward_args) }

LIGER_API liger_status liger_mhc_pre_backward(liger_context *context, const liger_mhc_pre_backward_args *args,
                                              liger_stream stream);

/* liger_mhc_post_res_forward   y[o] = Σ_i h_res[o, i] · x[i] + h_post[o] · f
 *
 *   x                  in   [..., hc, c]   T
 *   f                  in   [..., c]       T or f32
 *   h_post             in   [..., hc]      f32
 *   h_res              in   [..., hc, hc]  f32
 *   y                  out  [..., hc, c]   T
 *
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none. */
typedef struct liger_mhc_post_res_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor f;
    liger_tensor h_post;
    liger_tensor h_res;
    liger_tensor y;
} liger_mhc_post_res_forward_args;

#define LIGER_MHC_POST_RES_FORWARD_ARGS_INIT                                                                           \
    { .size = sizeof(liger_mhc_post_res_forward_args) }

LIGER_API liger_status liger_mhc_post_res_forward(liger_context *context, const liger_mhc_post_res_forward_args *args,
                                                  liger_stream stream);

/* liger_mhc_post_res_backward
 *
 *   dx[i] = Σ_o h_res[o, i] · dy[o]      df = Σ_o h_post[o] · dy[o]
 *   dh_post[o] = ⟨dy[o], f⟩              dh_res[o, i] = ⟨dy[o], x[i]⟩
 *
 *   dy                 in   [..., hc, c]   T
 *   x, f, h_post, h_res   in               as in forward
 *   dx                 out  [..., hc, c]   T      absent: not computed, as each of these
 *   df                 out  [..., c]       the dtype of f
 *   dh_post            out  [..., hc]      f32
 *   dh_res             out  [..., hc, hc]  f32 */
typedef struct liger_mhc_post_res_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor x;
    liger_tensor f;
    liger_tensor h_post;
    liger_tensor h_res;
    liger_tensor dx;
    liger_tensor df;
    liger_tensor dh_post;
    liger_tensor dh_res;
} liger_mhc_post_res_backward_args;

#define LIGER_MHC_POST_RES_BACKWARD_ARGS_INIT                                                                          \
    { .size = sizeof(liger_mhc_post_res_backward_args) }

LIGER_API liger_status liger_mhc_post_res_backward(liger_context *context, const liger_mhc_post_res_backward_args *args,
                                                   liger_stream stream);

#ifdef __cplusplus
}
#endif
#endif
