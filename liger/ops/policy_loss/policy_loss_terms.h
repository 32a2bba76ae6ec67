/* policy_loss_terms.h - the formulas, for a thread of either backend: it takes every step-th token of a sequence, or every
 * step-th sequence of the batch. */
#ifndef LIGER_OPS_POLICY_LOSS_TERMS_H
#define LIGER_OPS_POLICY_LOSS_TERMS_H

#include <math.h>

#include "liger/ops/policy_loss/policy_loss.h"
#include "liger/ops/policy_loss/policy_loss_problem.h"

#define POLICY LIGER_HOST_DEVICE static inline

/* ---- one token --------------------------------------------------------------------------------------------------- */

/* Where a sequence lies. What is absent is the log-probability itself, or NULL. */
struct policy_row {
    const float *p, *old, *reference, *ratio;
    const unsigned char *mask;
    float *d;
    float advantage;
    int64_t ratio_step; /* 0: one ratio for all tokens */
};

POLICY float *policy_at(liger_rows rows, int64_t i) {
    return rows.data ? (float *)rows.data + liger_row_offset(rows, i) : (float *)0;
}

POLICY struct policy_row policy_row_of(const struct policy_loss_problem *problem, int64_t i) {
    struct policy_row row;
    row.p = policy_at(problem->log_prob, i);
    row.old = problem->old_log_prob.data ? policy_at(problem->old_log_prob, i) : row.p;
    row.reference = problem->ref_log_prob.data ? policy_at(problem->ref_log_prob, i) : row.p;
    row.ratio = policy_at(problem->ratio, i);
    row.ratio_step = problem->ratio_cols > 1;
    row.mask = problem->mask.data ? (const unsigned char *)problem->mask.data + liger_row_offset(problem->mask, i)
                                  : (const unsigned char *)0;
    row.d = policy_at(problem->d_log_prob, i);
    row.advantage = problem->advantage[i];
    return row;
}

POLICY bool policy_counts(const struct policy_row *row, int64_t t) { return !row->mask || row->mask[t]; }

/* Bounds that let NaN through. */
POLICY double policy_clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

struct policy_term {
    float loss, kl;
    float by_weight, by_log_prob; /* d loss / d log w, and d loss / d p where w is held */
    float clipped;
};

/* e^x - x - 1: near 0 the terms of its series, where the difference would have no digits left. */
POLICY float policy_k3(float x) {
    if (!(fabsf(x) < 0.25f)) return expm1f(x) - x;
    return x * x * (1 / 2.f + x * (1 / 6.f + x * (1 / 24.f + x * (1 / 120.f + x * (1 / 720.f + x * (1 / 5040.f))))));
}

POLICY void policy_clipped(const struct policy_loss_problem *problem, float w, float a, float ratio,
                           struct policy_term *term) {
    const float low = 1 - problem->epsilon_low, high = 1 + problem->epsilon_high;
    const bool cut = problem->delta > 0 && w > problem->delta;
    const float bounded = (cut ? problem->delta : w) * a, clipped = (w < low ? low : w > high ? high : w) * a;
    const bool by_clipped = clipped < bounded;
    term->loss = -(by_clipped ? clipped : bounded) * ratio;
    term->by_weight = (by_clipped ? w < low || w > high : cut) ? 0 : -w * a * ratio;
    term->clipped = (w < low && a < 0) || (w > high && a > 0);
}

POLICY void policy_soft(float temperature, float w, float a, float ratio, struct policy_term *term) {
    const float x = temperature * (w - 1), e = expf(-fabsf(x));
    const float slope = e / ((1 + e) * (1 + e)), sigmoid = x < 0 ? e / (1 + e) : 1 / (1 + e);
    term->loss = -a * (4 / temperature) * sigmoid * ratio;
    term->by_weight = slope == 0 ? 0 : -4 * a * slope * w * ratio; /* w may be infinite there */
}

/* w·(e^x - x - 1). Where the weight is this token's own, w·e^x does not change with p; the difference of its two derivatives
 * would have the digits of the larger one only. */
POLICY void policy_corrected_kl(float beta, float x, float log_weight, bool own, struct policy_term *term) {
    const float w = expf(log_weight);
    term->kl = x > 1 ? expf(log_weight + x) - w * (1 + x) : policy_k3(x) * w; /* e^x alone may overflow */
    term->by_weight += own ? 0 : beta * term->kl;
    term->by_log_prob -= beta * (own ? w * x : x > 1 ? expf(log_weight + x) - w : w * expm1f(x));
}

/* `sum`: of the sequence the tokens and log w, or φ. */
POLICY struct policy_term policy_term_of(const struct policy_loss_problem *problem, const struct policy_row *row,
                                         const struct policy_sums *sum, int64_t t) {
    const bool by_token = problem->level == LIGER_POLICY_TOKEN;
    const float p = row->p[t], a = row->advantage, old = row->old[t], held = (float)sum->held;
    const float log_weight = by_token ? p - old : held, w = expf(log_weight);
    const float ratio = row->ratio ? row->ratio[t * row->ratio_step] : 1;
    struct policy_term term = {0, 0, 0, 0, 0};
    if (problem->loss_type == LIGER_POLICY_SAPO) {
        policy_soft(a > 0 ? problem->sapo_temperature_pos : problem->sapo_temperature_neg, w, a, ratio, &term);
    } else if (problem->loss_type == LIGER_POLICY_VESPO) {
        term.by_log_prob = -held * a;
        term.loss = term.by_log_prob * p;
    } else if (problem->loss_type == LIGER_POLICY_CISPO) {
        const bool above = w > problem->epsilon_high;
        term.by_log_prob = -(above ? problem->epsilon_high : w) * a * ratio;
        term.loss = term.by_log_prob * p;
        term.clipped = above && a > 0;
    } else {
        policy_clipped(problem, w, a, ratio, &term);
    }
    if (problem->beta == 0) return term;
    const float x = row->reference[t] - p;
    if (problem->corrects_kl) {
        const bool own = by_token || (sum->tokens == 1 && policy_counts(row, t));
        policy_corrected_kl(problem->beta, x, log_weight, own, &term);
    } else {
        term.kl = policy_k3(x);
        term.by_log_prob -= problem->beta * expm1f(x);
    }
    term.loss += problem->beta * term.kl;
    return term;
}

/* ---- one sequence -------------------------------------------------------------------------------------------------- */

/* What comes before the terms: the tokens, and Σ log w of them, of VESPO bounded and with the ratios'. */
POLICY struct policy_sums policy_before(const struct policy_loss_problem *problem, const struct policy_row *row,
                                        int64_t first, int64_t step) {
    const double most = problem->loss_type == LIGER_POLICY_VESPO ? 20 : (double)INFINITY;
    struct policy_sums sum = {0, 0, 0, 0, 0, 0};
    for (int64_t t = first; t < problem->tokens; t += step)
        if (policy_counts(row, t)) {
            sum.tokens += 1;
            sum.held += policy_clamp((double)row->p[t] - (double)row->old[t], -most, most);
        }
    if (problem->loss_type == LIGER_POLICY_VESPO)
        for (int64_t t = first; t < problem->ratio_cols; t += step)
            sum.held += policy_clamp(log((double)row->ratio[t]), log(1e-8), most);
    return sum;
}

POLICY float policy_held(const struct policy_loss_problem *problem, float advantage, const struct policy_sums *sum) {
    if (problem->loss_type != LIGER_POLICY_VESPO) return (float)(sum->held / fmax(sum->tokens, 1.0));
    const bool positive = advantage >= 0;
    const double u = policy_clamp(sum->held, log(1e-8), 20);
    const double k = positive ? problem->vespo_k_pos : problem->vespo_k_neg;
    const float lambda = positive ? problem->vespo_lambda_pos : problem->vespo_lambda_neg;
    const double rate = fmax((double)lambda, 1e-4);
    const float phi = (float)exp(rate + k * u - rate * exp(u));
    return isfinite(phi) ? phi : 0;
}

POLICY void policy_add_terms(const struct policy_loss_problem *problem, const struct policy_row *row, int64_t first,
                             int64_t step, struct policy_sums *sum) {
    for (int64_t t = first; t < problem->tokens; t += step) {
        const bool counts = policy_counts(row, t);
        if (!counts && problem->loss_type != LIGER_POLICY_LUSPO) continue;
        const struct policy_term term = policy_term_of(problem, row, sum, t);
        sum->loss += term.loss;
        sum->by_weight += term.by_weight;
        if (!counts) continue;
        sum->kl += term.kl;
        sum->clipped += term.clipped;
    }
}

/* ---- the batch ----------------------------------------------------------------------------------------------------- */

POLICY struct policy_sums *policy_sequences(const struct policy_loss_problem *problem) {
    return (struct policy_sums *)problem->workspace;
}
POLICY float *policy_divisor(const struct policy_loss_problem *problem) {
    return (float *)(void *)(policy_sequences(problem) + problem->sequences);
}

/* What a sequence's terms are multiplied by. */
POLICY double policy_share(const struct policy_loss_problem *problem, double tokens) {
    if (problem->loss_type == LIGER_POLICY_LUSPO) return tokens;
    const bool mean = problem->loss_type == LIGER_POLICY_GRPO || problem->loss_type == LIGER_POLICY_SAPO;
    return mean ? 1 / fmax(tokens, 1.0) : 1;
}

POLICY struct policy_sums policy_add_sequences(const struct policy_loss_problem *problem, int64_t first, int64_t step) {
    struct policy_sums sum = {0, 0, 0, 0, 0, 0};
    for (int64_t i = first; i < problem->sequences; i += step) {
        const struct policy_sums *sequence = policy_sequences(problem) + i;
        sum.loss += policy_share(problem, sequence->tokens) * sequence->loss;
        sum.kl += sequence->kl;
        sum.clipped += sequence->clipped;
        sum.tokens += sequence->tokens;
    }
    return sum;
}

POLICY void policy_finish(const struct policy_loss_problem *problem, const struct policy_sums *sum) {
    const double sequences = (double)problem->sequences, tokens = fmax(sum->tokens, 1.0);
    double divisor = sum->tokens;
    switch (problem->loss_type) {
        case LIGER_POLICY_GRPO:
        case LIGER_POLICY_SAPO: divisor = sequences; break;
        case LIGER_POLICY_LUSPO: divisor = sequences * (double)problem->tokens; break;
        case LIGER_POLICY_DR_GRPO: divisor = sequences * (double)problem->max_completion_length; break;
        case LIGER_POLICY_BNPO: break;
        default:
            if (problem->num_items) divisor = *problem->num_items;
    }
    divisor = divisor < 1 ? 1 : divisor;
    *policy_divisor(problem) = (float)divisor;
    if (problem->loss) *problem->loss = (float)(sum->loss / divisor);
    if (problem->kl) *problem->kl = (float)(sum->kl / tokens);
    if (problem->clip_ratio) *problem->clip_ratio = (float)(sum->clipped / tokens);
}

/* The gradient of tokens, which may lie where an input of the same token does. */
POLICY void policy_gradient(const struct policy_loss_problem *problem, int64_t i, int64_t first, int64_t step) {
    const struct policy_row row = policy_row_of(problem, i);
    const struct policy_sums *sum = policy_sequences(problem) + i;
    const bool whole = problem->level == LIGER_POLICY_SEQUENCE;
    const float upstream = problem->upstream ? *problem->upstream : 1;
    const float share = (float)policy_share(problem, sum->tokens) / *policy_divisor(problem) * upstream;
    const float of_each = whole ? (float)(sum->by_weight / sum->tokens) : 0;
    for (int64_t t = first; t < problem->tokens; t += step) {
        const bool counts = policy_counts(&row, t);
        float d = 0;
        if (counts || problem->loss_type == LIGER_POLICY_LUSPO) {
            const struct policy_term term = policy_term_of(problem, &row, sum, t);
            d = (term.by_log_prob + (!whole ? term.by_weight : counts ? of_each : 0)) * share;
        }
        row.d[t] = d;
    }
}

#endif
