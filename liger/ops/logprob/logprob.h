/* logprob.h - log-probabilities of tokens, and other numbers for each, of rows of logits that are there. What stands on a head
 * is linear_logprob.h. */
#ifndef LIGER_OPS_LOGPROB_H
#define LIGER_OPS_LOGPROB_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_logprob_forward     z = softcap(scale·logits)/temperature,  softcap(v) = c·tanh(v/c),  p = softmax(z)
 *
 *   logits              in    [rows, vocab]    T    any row stride >= vocab
 *   target              in    [rows]     i32 or i64 in [0, vocab), or ignore_index
 *   log_prob            out   [rows]          f32   log p of the target. May be absent, as every output
 *   entropy             out   [rows]          f32   -Σ p log p
 *   lse                 out   [rows]          f32   log Σ exp z
 *   log_sum_sq_probs    out   [rows]          f32   log Σ p²
 *   mean_logits         out   [rows]          f32   Σ z / vocab
 *   is_top1             out   [rows]         bool   the target is the first of the largest logits
 *   normalizer          out   [rows, 2]       f32   the maximum of z, and log Σ exp(z - maximum): for backward
 *
 *   T is f32, f16 or bf16; the rest is f32. Ignored rows give 0.
 *   Edges: logits of -inf have probability 0; a row of NaN or +inf gives NaN, is_top1 false, and as mean_logits what its sum
 *   is. Targets out of range: as cross entropy. rows == 0: nothing. vocab == 0: SHAPE.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, TARGET.
 *   Same inputs, same bits.  Graph-capturable.  No workspace.  Since 0.9. */
typedef struct liger_logprob_forward_args {
    size_t size;
    liger_tensor logits;
    liger_tensor target;
    liger_tensor log_prob;
    liger_tensor entropy;
    liger_tensor lse;
    liger_tensor log_sum_sq_probs;
    liger_tensor mean_logits;
    liger_tensor is_top1;
    liger_tensor normalizer;
    int64_t ignore_index;
    float scale;       /* finite */
    float softcap;     /* 0 = none, else > 0 */
    float temperature; /* finite, > 0 */
    int32_t reserved;  /* 0 */
} liger_logprob_forward_args;

#define LIGER_LOGPROB_FORWARD_ARGS_INIT                                                                                \
    { .size = sizeof(liger_logprob_forward_args), .ignore_index = -100, .scale = 1.0f, .temperature = 1.0f }

LIGER_API liger_status liger_logprob_forward(liger_context *context, const liger_logprob_forward_args *args,
                                             liger_stream stream);

/* liger_logprob_backward     dlogits from the upstream gradients of these numbers
 *
 *   With u, v, l, q and m the upstream gradients of log_prob, entropy, lse, log_sum_sq_probs and mean_logits, and S = Σ p²,
 *     dz_j = u·(1[j = target] - p_j) - v·p_j·(log p_j + entropy) + l·p_j + 2·q·(p_j²/S - p_j) + m/vocab
 *     dlogits_j = dz_j·(1 - (softcap(s)/softcap)²)·scale/temperature                                      s = scale·logits_j
 *   and 0 in ignored rows, whatever their upstream is.
 *
 *   logits, target      in    as forward's
 *   log_prob            in    [rows]          f32   forward's; may be absent if d_log_prob is
 *   normalizer          in    [rows, 2]       f32   forward's
 *   entropy             in    [rows]          f32   forward's; may be absent if d_entropy is
 *   log_sum_sq_probs    in    [rows]          f32   forward's; may be absent if d_log_sum_sq_probs is
 *   d_...               in    as the output   f32   upstream gradients, contiguous; each may be absent, which is 0
 *   dlogits             out   [rows, vocab]    T    may be logits
 *
 *   Where the vocabulary is split, logits are a slice and the statistics those of the whole: a row whose target lies in another
 *   slice has any target of this one, a d_log_prob of 0, and its upstream subtracted from d_lse's; d_mean_logits is times the
 *   slice's share of the vocabulary.
 *   Edges, errors and promises as forward. The options must be those of the forward call. Workspace: see the query.
 *   Since 0.9. */
typedef struct liger_logprob_backward_args {
    size_t size;
    liger_tensor logits;
    liger_tensor target;
    liger_tensor log_prob;
    liger_tensor normalizer;
    liger_tensor entropy;
    liger_tensor log_sum_sq_probs;
    liger_tensor d_log_prob;
    liger_tensor d_entropy;
    liger_tensor d_lse;
    liger_tensor d_log_sum_sq_probs;
    liger_tensor d_mean_logits;
    liger_tensor dlogits;
    int64_t ignore_index;
    float scale;
    float softcap;
    float temperature;
    int32_t reserved; /* 0 */
    void *workspace;  /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_logprob_backward_args;

#define LIGER_LOGPROB_BACKWARD_ARGS_INIT                                                                               \
    { .size = sizeof(liger_logprob_backward_args), .ignore_index = -100, .scale = 1.0f, .temperature = 1.0f }

LIGER_API liger_status liger_logprob_backward(liger_context *context, const liger_logprob_backward_args *args,
                                              liger_stream stream);
LIGER_API liger_status liger_logprob_backward_workspace(liger_context *context, const liger_logprob_backward_args *args,
                                                        size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
