/* rms_norm.h - root-mean-square normalisation, alone and fused with a residual addition.
 *
 * B. Zhang, R. Sennrich: Root Mean Square Layer Normalization (2019). */
#ifndef LIGER_OPS_RMS_NORM_H
#define LIGER_OPS_RMS_NORM_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where values are rounded to T on the way; sums are f32 in every mode. T is the dtype of x. */
typedef enum liger_casting {
    LIGER_CAST_LLAMA = 0, /* x·rstd is rounded to T before the weight, as Hugging Face's Llama does */
    LIGER_CAST_GEMMA = 1, /* nothing is rounded before the store */
    LIGER_CAST_NONE = 2   /* epsilon, offset and rstd are rounded to T; weight + offset to T if the weight is T */
} liger_casting;

/* liger_rms_norm_forward     y = x · rstd · (weight + offset),   rstd = 1/√(mean(x²) + epsilon)
 *
 *   x        in    [..., cols]   T         last dimension contiguous; leading ones fold into at most two row strides
 *   weight   in    [cols]        T or f32  absent: y = x · rstd
 *   y        out   [..., cols]   T         may be x itself; any other overlap is LIGER_ERR_LAYOUT
 *   rstd     out   [rows]        f32       keep it for the backward call; may be absent
 *
 *   T is f32, f16 or bf16. Arithmetic in f32, rounded once at the store but for what `casting` names.
 *   Edges: rows == 0 succeeds and does nothing; cols == 0 is LIGER_ERR_SHAPE; NaN and Inf propagate.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_rms_norm_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor y;
    liger_tensor rstd;
    float epsilon; /* >= 0 */
    float offset;
    int32_t casting;  /* liger_casting */
    int32_t reserved; /* 0 */
} liger_rms_norm_forward_args;

#define LIGER_RMS_NORM_FORWARD_ARGS_INIT                                                                               \
    { .size = sizeof(liger_rms_norm_forward_args), .epsilon = 1e-6f }

LIGER_API liger_status liger_rms_norm_forward(liger_context *context, const liger_rms_norm_forward_args *args,
                                              liger_stream stream);

/* liger_rms_norm_backward    the gradients of liger_rms_norm_forward
 *
 *   with m = dy · (weight + offset):   dx = rstd·m - x · rstd³/cols · Σ m·x        dweight = Σ_rows dy · x·rstd
 *
 *   dy       in    [..., cols]   T         the upstream gradient
 *   x        in    [..., cols]   T         forward's input
 *   weight   in    [cols]        T or f32  absent if it was in forward
 *   rstd     in    [rows]        f32       forward's output
 *   dx       out   [..., cols]   T         may be dy itself; absent: not computed
 *   dweight  out   [cols]        the weight's dtype (f32 without a weight); absent: not computed
 *
 *   Sums over rows and columns are f32; in LLAMA casting x·rstd is rounded to T before it enters dweight.
 *   Edges: rows == 0 gives dweight = 0.  Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.
 *   Workspace: partial sums of dweight, see the query.  Same inputs, same bits, any thread count.  Graph-capturable. */
typedef struct liger_rms_norm_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor rstd;
    liger_tensor dx;
    liger_tensor dweight;
    float offset;
    int32_t casting; /* liger_casting, the one of forward */
    void *workspace; /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_rms_norm_backward_args;

#define LIGER_RMS_NORM_BACKWARD_ARGS_INIT                                                                              \
    { .size = sizeof(liger_rms_norm_backward_args) }

LIGER_API liger_status liger_rms_norm_backward(liger_context *context, const liger_rms_norm_backward_args *args,
                                               liger_stream stream);
LIGER_API liger_status liger_rms_norm_backward_workspace(liger_context *context,
                                                         const liger_rms_norm_backward_args *args, size_t *bytes);

/* liger_add_rms_norm_forward     sum = x + residual (rounded to T);   y = RMSNorm(sum)
 *
 *   x, residual  in    [..., cols]   T
 *   weight       in    [cols]        T or f32
 *   y            out   [..., cols]   T     may be x or residual
 *   sum          out   [..., cols]   T     the new residual stream, and what the backward call needs as `sum`; may be x
 *                                          or residual (not the one that y is)
 *   rstd         out   [rows]        f32   may be absent
 *
 *   Everything else as liger_rms_norm_forward; the statistics are those of the rounded sum. */
typedef struct liger_add_rms_norm_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor residual;
    liger_tensor weight;
    liger_tensor y;
    liger_tensor sum;
    liger_tensor rstd;
    float epsilon; /* >= 0 */
    float offset;
    int32_t casting;  /* liger_casting */
    int32_t reserved; /* 0 */
} liger_add_rms_norm_forward_args;

#define LIGER_ADD_RMS_NORM_FORWARD_ARGS_INIT                                                                           \
    { .size = sizeof(liger_add_rms_norm_forward_args), .epsilon = 1e-6f }

LIGER_API liger_status liger_add_rms_norm_forward(liger_context *context, const liger_add_rms_norm_forward_args *args,
                                                  liger_stream stream);

/* liger_add_rms_norm_backward    dx = RMSNorm-backward(dy at sum) + dsum, the gradient of both x and residual
 *
 *   dy       in    [..., cols]   T         upstream of y
 *   dsum     in    [..., cols]   T         upstream of sum; absent: zero
 *   sum      in    [..., cols]   T         forward's output
 *   weight, rstd, dx, dweight, workspace   as liger_rms_norm_backward; dx may be dy or dsum */
typedef struct liger_add_rms_norm_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor dsum;
    liger_tensor sum;
    liger_tensor weight;
    liger_tensor rstd;
    liger_tensor dx;
    liger_tensor dweight;
    float offset;
    int32_t casting;
    void *workspace;
    size_t workspace_bytes;
} liger_add_rms_norm_backward_args;

#define LIGER_ADD_RMS_NORM_BACKWARD_ARGS_INIT                                                                          \
    { .size = sizeof(liger_add_rms_norm_backward_args) }

LIGER_API liger_status liger_add_rms_norm_backward(liger_context *context, const liger_add_rms_norm_backward_args *args,
                                                   liger_stream stream);
LIGER_API liger_status liger_add_rms_norm_backward_workspace(liger_context *context,
                                                             const liger_add_rms_norm_backward_args *args,
                                                             size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
