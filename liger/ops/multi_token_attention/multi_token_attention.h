/* multi_token_attention.h - attention weights mixed over neighbouring queries, keys and heads: a softmax (or sparsemax) of causal
 * scores, and a convolution of what comes out.
 *
 * O. Golovneva et al.: Multi-Token Attention (2025). */
#ifndef LIGER_OPS_MULTI_TOKEN_ATTENTION_H
#define LIGER_OPS_MULTI_TOKEN_ATTENTION_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_multi_token_attention_forward
 *
 *   P = softmax of each row of scores over its columns up to the diagonal, 0 beyond; or its sparsemax, if sparse
 *   y[b,o,i,j] = bias[o] + Σ over c, u, v of weight[o,c,u,v] · P[b, o's group's channel c, i·stride_h + u·dilation_h - padding_h,
 *                                                               j·stride_w + v·dilation_w - padding_w]   for j <= i, else 0
 *
 *   scores      in    [batch, in, L, L]          T       contiguous; what lies beyond the diagonal does not matter
 *   weight      in    [out, in/groups, kh, kw]   T or f32
 *   bias        in    [out]                      the weight's dtype; may be absent: 0
 *   y           out   [batch, out, L, L]         T       contiguous
 *   statistics  out   [batch, in, L, 2]          f32     of each row; keep it for backward. Softmax: the largest score, and 1 over
 *                                                the sum of what P is before it is divided. Sparse: the largest float that is
 *                                                not above tau, and what tau is more
 *   groups      1 or more; `in` and `out` are multiples of it
 *   stride, padding, dilation   of rows (h) and columns (w): (L + 2·padding - dilation·(k - 1) - 1) / stride + 1, rounded down,
 *               must be L
 *   sparse      0 or 1; 1 only for f32
 *
 *   T is f32, f16 or bf16. Arithmetic in f32. P is rounded to T before the convolution, y at the store.
 *   Edges: batch == 0 or L == 0 succeeds and does nothing. A row whose scores up to the diagonal are all -Inf has P = 0; one
 *   with a NaN or +Inf there is NaN. A weight or dy that is infinite or NaN, and the P of such a row, may make NaN of what they
 *   meet with a factor of 0, up to 16 columns away.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits, any thread count.  Graph-capturable.
 *   Since 0.9. */
typedef struct liger_multi_token_attention_forward_args {
    size_t size;
    liger_tensor scores;
    liger_tensor weight;
    liger_tensor bias;
    liger_tensor y;
    liger_tensor statistics;
    int64_t stride_h, stride_w;     /* >= 1 */
    int64_t padding_h, padding_w;   /* >= 0 */
    int64_t dilation_h, dilation_w; /* >= 1 */
    int64_t groups;
    int32_t sparse;
    int32_t reserved; /* 0 */
} liger_multi_token_attention_forward_args;

#define LIGER_MULTI_TOKEN_ATTENTION_FORWARD_ARGS_INIT                                                                  \
    {                                                                                                                  \
        .size = sizeof(liger_multi_token_attention_forward_args), .stride_h = 1, .stride_w = 1, .dilation_h = 1,       \
        .dilation_w = 1, .groups = 1                                                                                   \
    }

LIGER_API liger_status liger_multi_token_attention_forward(liger_context *context,
                                                           const liger_multi_token_attention_forward_args *args,
                                                           liger_stream stream);

/* liger_multi_token_attention_backward    the gradients of liger_multi_token_attention_forward
 *
 *   with g = dy up to the diagonal, 0 beyond, and dP = the transposed convolution of g with weight, rounded to T:
 *   dscores = P · (dP - Σ P·dP of the row), or, if sparse, dP - its mean over the support, there;   0 beyond the diagonal
 *   dweight = Σ g · P over all places that the weight is multiplied at;   dbias = Σ g
 *
 *   dy          in    [batch, out, L, L]         T       contiguous; likewise
 *   scores      in    [batch, in, L, L]          T       forward's input
 *   weight      in    [out, in/groups, kh, kw]   T or f32
 *   statistics  in    [batch, in, L, 2]          f32     forward's result
 *   dscores     out   as scores                  T       absent: not computed
 *   dweight     out   as weight                  the weight's dtype; absent: not computed
 *   dbias       out   [out]                      the weight's dtype; absent: not computed
 *   the options as in forward
 *
 *   P is made again from scores: no tensor of its size is kept. Of a row without P the gradient is 0. Sums are f32.
 *   Edges: batch == 0 or L == 0 gives dweight = dbias = 0.  Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.
 *   Workspace: partial sums of dweight and dbias, see the query.  Same inputs, same bits, any thread count.
 *   Graph-capturable.  Since 0.9. */
typedef struct liger_multi_token_attention_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor scores;
    liger_tensor weight;
    liger_tensor statistics;
    liger_tensor dscores;
    liger_tensor dweight;
    liger_tensor dbias;
    int64_t stride_h, stride_w;
    int64_t padding_h, padding_w;
    int64_t dilation_h, dilation_w;
    int64_t groups;
    int32_t sparse;
    int32_t reserved; /* 0 */
    void *workspace;  /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_multi_token_attention_backward_args;

#define LIGER_MULTI_TOKEN_ATTENTION_BACKWARD_ARGS_INIT                                                                 \
    {                                                                                                                  \
        .size = sizeof(liger_multi_token_attention_backward_args), .stride_h = 1, .stride_w = 1, .dilation_h = 1,      \
        .dilation_w = 1, .groups = 1                                                                                   \
    }

LIGER_API liger_status liger_multi_token_attention_backward(liger_context *context,
                                                            const liger_multi_token_attention_backward_args *args,
                                                            liger_stream stream);
LIGER_API liger_status liger_multi_token_attention_backward_workspace(
    liger_context *context, const liger_multi_token_attention_backward_args *args, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
