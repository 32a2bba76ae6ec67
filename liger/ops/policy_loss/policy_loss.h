/* policy_loss.h - losses of a policy on the log-probabilities of the tokens that it was trained on: GRPO and its relatives.
 *
 * liger_linear_logprob_forward makes the log-probabilities, liger_linear_logprob_backward takes their gradient. */
#ifndef LIGER_OPS_POLICY_LOSS_H
#define LIGER_OPS_POLICY_LOSS_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* With a token's term l and n_i tokens that count in sequence i, N in all, S sequences of T positions, the loss is */
typedef enum liger_policy_loss_type {
    LIGER_POLICY_GRPO = 0,    /* Σ_i (Σ_t l / n_i) / S                    DeepSeekMath, arXiv 2402.03300 */
    LIGER_POLICY_BNPO = 1,    /* Σ l / N                                  a mean over the tokens of this batch */
    LIGER_POLICY_DR_GRPO = 2, /* Σ l / (S·max_completion_length)          Dr. GRPO, arXiv 2503.20783 */
    LIGER_POLICY_DAPO = 3,    /* Σ l / Z, Z = num_items or N              DAPO, arXiv 2503.14476 */
    LIGER_POLICY_LUSPO = 4,   /* Σ_i n_i·Σ_t l / (S·T), all t, see below  LUSPO, arXiv 2602.05261 */
    LIGER_POLICY_CISPO = 5,   /* as DAPO                                  MiniMax-M1, arXiv 2506.13585 */
    LIGER_POLICY_SAPO = 6,    /* as GRPO                                  SAPO, arXiv 2511.20347 */
    LIGER_POLICY_VESPO = 7    /* as DAPO                                  VESPO, arXiv 2602.10693 */
} liger_policy_loss_type;

/* What one weight of importance is of: of a sequence (GSPO, arXiv 2507.18071; GRPO to LUSPO only) it is that of the mean. */
typedef enum liger_policy_level {
    LIGER_POLICY_TOKEN = 0,   /* w = exp(p - o) */
    LIGER_POLICY_SEQUENCE = 1 /* w = exp(mean of p - o over the tokens that count) */
} liger_policy_level;

/* liger_policy_loss     the loss and its gradient in one call; with c = clip(w, 1 - epsilon_low, 1 + epsilon_high)
 *
 *   GRPO to LUSPO   l = -min(min(w, delta)·A, c·A)
 *   CISPO           l = -min(w, epsilon_high)·A·p, the weight held constant
 *   SAPO            l = -A·4/τ·σ(τ·(w - 1)), τ = sapo_temperature_pos where A > 0, else _neg
 *   VESPO           l = -φ·A·p, φ = exp(λ + k·u - λ·e^u) held constant, 0 where it is not finite; u = Σ (p - o) + Σ log ratio,
 *                   terms and sum within [log 1e-8, 20] (p - o: [-20, 20]); k and λ >= 1e-4 by the sign of A, pos if A >= 0
 *   then l·ratio (but VESPO), plus beta·d, d = e^(q - p) - (q - p) - 1, which corrects_kl multiplies by w.
 *
 *   log_prob      in    [sequences, tokens]  f32    p. As every tensor of this shape: last dimension contiguous, any row stride
 *   mask          in    [sequences, tokens]  bool   tokens that count; absent: all do
 *   advantage     in    [sequences]          f32    A
 *   old_log_prob  in    [sequences, tokens]  f32    o, of the policy that sampled; absent: p, held constant
 *   ref_log_prob  in    [sequences, tokens]  f32    q, of the reference; absent: p, held constant (d is 0)
 *   ratio         in    [sequences, tokens] or [sequences, 1]  f32   trainer's over sampler's probability, where these are two
 *                                                                    programs; absent: 1. [sequences, 1] is one factor in u
 *   num_items     in    scalar               f32    of DAPO, CISPO, VESPO: tokens of all processes, divided by the processes,
 *                                                   at least 1; absent: N
 *   upstream      in    scalar               f32    multiplies d_log_prob, read on the device; absent: 1
 *   loss          out   scalar               f32    each output may be absent
 *   kl            out   scalar               f32    the mean of d over the tokens that count; 0 if beta is
 *   clip_ratio    out   scalar               f32    the part of the tokens that count where c < w and A > 0, or c > w and A < 0;
 *                                                   of CISPO where w > epsilon_high and A > 0; of SAPO and VESPO 0
 *   d_log_prob    out   [sequences, tokens]  f32    upstream · d loss / d p; may be log_prob, old_log_prob or ref_log_prob itself
 *
 *   Positions that do not count are not read, and their gradient is 0, but: VESPO's u has the ratios of all columns; LUSPO adds
 *   all positions up where a sequence has more than one number (TOKEN, beta, or a ratio of each token), in value and gradient.
 *   Behind liger_linear_logprob give such positions ignored targets: what they pass on is 0 again.
 *   Arithmetic and terms in f32, sums in a fixed order in f64, rounded to f32. Divisors are 1 at least: nothing counts, loss 0.
 *   Edges: no sequences or tokens: zeros; NaN and Inf propagate, but w that overflows gives SAPO no gradient.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.  Same inputs, same bits.  Graph-capturable.  Since 0.9. */
typedef struct liger_policy_loss_args {
    size_t size;
    liger_tensor log_prob;
    liger_tensor mask;
    liger_tensor advantage;
    liger_tensor old_log_prob;
    liger_tensor ref_log_prob;
    liger_tensor ratio;
    liger_tensor num_items;
    liger_tensor upstream;
    liger_tensor loss;
    liger_tensor kl;
    liger_tensor clip_ratio;
    liger_tensor d_log_prob;
    int64_t max_completion_length; /* of DR_GRPO, which needs it */
    int32_t loss_type;             /* liger_policy_loss_type */
    int32_t level;                 /* liger_policy_level */
    int32_t corrects_kl;           /* 0 or 1 */
    float beta;                    /* finite, as all of these; 0: no reference */
    float epsilon_low;
    float epsilon_high;         /* of CISPO the bound itself */
    float delta;                /* > 0, or 0 for none */
    float sapo_temperature_pos; /* > 0 in SAPO */
    float sapo_temperature_neg;
    float vespo_k_pos;
    float vespo_lambda_pos;
    float vespo_k_neg;
    float vespo_lambda_neg;
    int32_t reserved; /* 0 */
    void *workspace;  /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_policy_loss_args;

#define LIGER_POLICY_LOSS_ARGS_INIT                                                                                    \
    {                                                                                                                  \
        .size = sizeof(liger_policy_loss_args), .loss_type = LIGER_POLICY_DAPO, .beta = 0.04f, .epsilon_low = 0.2f,    \
        .epsilon_high = 0.2f, .sapo_temperature_pos = 1.0f, .sapo_temperature_neg = 1.05f, .vespo_k_pos = 2.0f,        \
        .vespo_lambda_pos = 3.0f, .vespo_k_neg = 3.0f, .vespo_lambda_neg = 2.0f                                        \
    }

LIGER_API liger_status liger_policy_loss(liger_context *context, const liger_policy_loss_args *args,
                                         liger_stream stream);
LIGER_API liger_status liger_policy_loss_workspace(liger_context *context, const liger_policy_loss_args *args,
                                                   size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
