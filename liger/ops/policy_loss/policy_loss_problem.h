/* policy_loss_problem.h - what a backend sees of a policy's loss: flat, checked, no views. */
#ifndef LIGER_OPS_POLICY_LOSS_PROBLEM_H
#define LIGER_OPS_POLICY_LOSS_PROBLEM_H

#include "liger/core/rows.h"

/* What the tokens of a sequence, or of the batch, add up to; those of sequences lie in scratch. */
struct policy_sums {
    double tokens; /* that count */
    double held;   /* Σ log w, then log w of the sequence or VESPO's φ */
    double loss, kl, clipped;
    double by_weight; /* Σ d term / d log w */
};

struct policy_loss_problem {
    int64_t sequences, tokens;                                                /* each may be 0 */
    liger_rows log_prob, mask, old_log_prob, ref_log_prob, ratio, d_log_prob; /* but log_prob, data may be NULL */
    const float *advantage, *num_items, *upstream;                            /* the last two or NULL */
    float *loss, *kl, *clip_ratio;                                            /* each or NULL */
    int64_t ratio_cols;                                                       /* tokens or 1; 0 without a ratio */
    int64_t max_completion_length;
    int32_t loss_type, level, corrects_kl;
    float beta, epsilon_low, epsilon_high, delta; /* delta: 0 = none */
    float sapo_temperature_pos, sapo_temperature_neg;
    float vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg;
    void *workspace; /* policy_loss_workspace(): sequences, then the divisor of the batch */
};

static inline size_t policy_loss_workspace(int64_t sequences) {
    return (size_t)sequences * sizeof(struct policy_sums) + sizeof(float);
}

#endif
