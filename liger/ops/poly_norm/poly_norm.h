/* poly_norm.h - a weighted sum of the normalised powers of each row, an activation for MLPs.
 *
 * Z. Zhuo et al.: Polynomial Composition Activations: Unleashing the Dynamics of Large Language Models (2024). */
#ifndef LIGER_OPS_POLY_NORM_H
#define LIGER_OPS_POLY_NORM_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_poly_norm_forward     y = weight₀ · n(x³) + weight₁ · n(x²) + weight₂ · n(x) + bias
 *
 *   with n(z) = z / √(mean(z²) + epsilon) over each row.
 *
 *   x        in    [..., cols]   T         last dimension contiguous; leading ones fold into at most two row strides
 *   weight   in    [3]           T or f32
 *   bias     in    one element   the weight's dtype
 *   y        out   [..., cols]   T         may be x itself; any other overlap is LIGER_ERR_LAYOUT
 *   rstd     out   [rows, 3]     f32       1/√(mean(z²) + epsilon) of x³, x², x: keep it for backward; may be absent
 *
 *   T is f32, f16 or bf16. Arithmetic in f32, rounded once at the store. The sixth powers of a row are added up: f32 holds
 *   them up to |x| = 2^21, divided by the sixth root of the row's length.
 *   Edges: rows == 0 succeeds and does nothing; cols == 0 is LIGER_ERR_SHAPE; NaN and Inf propagate.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_poly_norm_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor bias;
    liger_tensor y;
    liger_tensor rstd;
    float epsilon;    /* >= 0 */
    int32_t reserved; /* 0 */
} liger_poly_norm_forward_args;

#define LIGER_POLY_NORM_FORWARD_ARGS_INIT                                                                              \
    { .size = sizeof(liger_poly_norm_forward_args), .epsilon = 1e-6f }

LIGER_API liger_status liger_poly_norm_forward(liger_context *context, const liger_poly_norm_forward_args *args,
                                               liger_stream stream);

/* liger_poly_norm_backward    the gradients of liger_poly_norm_forward
 *
 *   with p = 3, 2, 1 for weight₀, weight₁, weight₂:
 *   dx = Σ_p weight_p · p · x^(p-1) · rstd_p · (dy - x^p · rstd_p² · mean(dy · x^p))
 *   dweight_p = Σ dy · n(x^p)        dbias = Σ dy
 *
 *   dy       in    [..., cols]   T         the upstream gradient
 *   x        in    [..., cols]   T         forward's input
 *   weight   in    [3]           T or f32
 *   rstd     in    [rows, 3]     f32       forward's output
 *   dx       out   [..., cols]   T         may be dy itself; absent: not computed
 *   dweight  out   [3]           the weight's dtype; absent: not computed
 *   dbias    out   one element   likewise
 *
 *   Sums are f32.  Edges: rows == 0 gives dweight = dbias = 0.  Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.
 *   Workspace: partial sums of dweight and dbias, see the query.  Same inputs, same bits, any thread count.
 *   Graph-capturable.  Since 0.9. */
typedef struct liger_poly_norm_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor rstd;
    liger_tensor dx;
    liger_tensor dweight;
    liger_tensor dbias;
    void *workspace; /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_poly_norm_backward_args;

#define LIGER_POLY_NORM_BACKWARD_ARGS_INIT                                                                             \
    { .size = sizeof(liger_poly_norm_backward_args) }

LIGER_API liger_status liger_poly_norm_backward(liger_context *context, const liger_poly_norm_backward_args *args,
                                                liger_stream stream);
LIGER_API liger_status liger_poly_norm_backward_workspace(liger_context *context,
                                                          const liger_poly_norm_backward_args *args, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
