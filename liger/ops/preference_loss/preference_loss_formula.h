/* preference_loss_formula.h - the losses and their slopes, in f32, for both backends. */
#ifndef LIGER_OPS_PREFERENCE_LOSS_FORMULA_H
#define LIGER_OPS_PREFERENCE_LOSS_FORMULA_H

#include <float.h>
#include <math.h>

#include "liger/core/rows.h"
#include "liger/ops/preference_loss/preference_loss.h"
#include "liger/ops/preference_loss/preference_loss_problem.h"

/* A term of the mean, and its slopes in the log-probabilities of its sequences. */
struct preference_term {
    float loss, chosen, rejected;
};
LIGER_HOST_DEVICE static inline struct preference_term term(float loss, float chosen, float rejected) {
    const struct preference_term of = {loss, chosen, rejected};
    return of;
}

LIGER_HOST_DEVICE static inline float logistic(float x) {
    const float e = expf(-fabsf(x));
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}
LIGER_HOST_DEVICE static inline float log_logistic(float x) { return (x < 0 ? x : 0.0f) - log1pf(expf(-fabsf(x))); }
LIGER_HOST_DEVICE static inline float logistic_slope(float x) { return logistic(x) * logistic(-x); }

LIGER_HOST_DEVICE static inline float square(float x) { return x * x; }

/* log(1 - e^x), by whichever of two forms keeps its digits. */
LIGER_HOST_DEVICE static inline float log_one_minus_exp(float x) {
    const float below = x < -FLT_MIN ? x : -FLT_MIN;
    return below > -0.6931472f ? logf(-expm1f(below)) : log1pf(-expf(below));
}
/* The slope of x - log(1 - e^x), the logarithm of the odds. */
LIGER_HOST_DEVICE static inline float log_odds_slope(float x) { return x > -FLT_MIN ? 1.0f : -1.0f / expm1f(x); }

LIGER_HOST_DEVICE static inline struct preference_term orpo_term(float beta, float c, float r) {
    const float odds = (c - r) - (log_one_minus_exp(c) - log_one_minus_exp(r)), slope = -beta * logistic(-odds);
    return term(-beta * log_logistic(odds), slope * log_odds_slope(c), -slope * log_odds_slope(r));
}

/* Of the losses on the difference d alone: the loss and its slope, as `chosen`. */
LIGER_HOST_DEVICE static inline struct preference_term margin_term(const struct preference_loss_problem *p, float d) {
    struct preference_term of = {0, 0, 0};
    if (p->type == LIGER_PREFERENCE_HINGE) {
        of.loss = 1 - d <= 0 ? 0 : 1 - d; /* NaN stays */
        of.chosen = 1 - d <= 0 ? 0 : 1 - d > 0 ? -1 : d;
    } else if (p->type == LIGER_PREFERENCE_EXO_PAIR) {
        const float s = p->label_smoothing;
        of.loss = logistic(d) * (log_logistic(d) - log1pf(-s)) + logistic(-d) * (log_logistic(-d) - logf(s));
        of.chosen = logistic_slope(d) * (d - (log1pf(-s) - logf(s)));
    } else if (p->type == LIGER_PREFERENCE_DISCOPOP) { /* m e^(-d) is one exponential: e^(-d) alone overflows */
        const float t = d / p->tau, other = expf(log_logistic(t) - d);
        of.loss = -log_logistic(d) * logistic(-t) + other;
        of.chosen = log_logistic(d) * logistic_slope(t) / p->tau - logistic(-d) * logistic(-t) +
                    other * (logistic(-t) / p->tau - 1); /* of one sign where other is infinite */
    } else {                                             /* a weight of 0 must not meet an infinity */
        of.loss = (p->right == 0 ? 0 : -p->right * log_logistic(d)) - (p->wrong == 0 ? 0 : p->wrong * log_logistic(-d));
        of.chosen = p->wrong * logistic(d) - p->right * logistic(-d);
    }
    return of;
}

/* Of a pair, its slopes in C and R. */
LIGER_HOST_DEVICE static inline struct preference_term pair_term(const struct preference_loss_problem *p, float C,
                                                                 float R, float d) {
    switch (p->type) {
        case LIGER_PREFERENCE_NCA_PAIR:
            return term(-log_logistic(C) - 0.5f * log_logistic(-C) - 0.5f * log_logistic(-R),
                        0.5f * logistic(C) - logistic(-C), 0.5f * logistic(R));
        case LIGER_PREFERENCE_BCO_PAIR: return term(-log_logistic(C) - log_logistic(-R), -logistic(-C), logistic(R));
        case LIGER_PREFERENCE_SPPO_HARD:
            return term(square((C - 0.5f) / p->beta) + square((R + 0.5f) / p->beta), 2 * (C - 0.5f) / square(p->beta),
                        2 * (R + 0.5f) / square(p->beta));
        case LIGER_PREFERENCE_APO_ZERO: return term(logistic(-C) + logistic(R), -logistic_slope(C), logistic_slope(R));
        case LIGER_PREFERENCE_APO_DOWN:
            return term(logistic(C) + logistic(-d), logistic_slope(C) - logistic_slope(d), logistic_slope(d));
    }
    struct preference_term of = margin_term(p, d);
    of.rejected = -of.chosen;
    return of;
}

LIGER_HOST_DEVICE static inline float log_ratio(const struct preference_loss_problem *p, int64_t s) {
    return p->sums[s].log_prob - (p->reference ? p->reference[s] : 0);
}

/* Term i of the mean. */
LIGER_HOST_DEVICE static inline struct preference_term term_of(const struct preference_loss_problem *p, int64_t i) {
    if (p->type == LIGER_PREFERENCE_KTO) {
        const float sign = p->desirable[i] ? -1.0f : 1.0f;
        const float x = sign * (p->beta * (log_ratio(p, i) - (p->kl ? *p->kl : 0)));
        return term(logistic(x), sign * p->beta * logistic_slope(x), 0);
    }
    const struct preference_sums *chosen = p->sums + i, *rejected = chosen + p->terms;
    if (p->type == LIGER_PREFERENCE_ORPO) {
        if (chosen->tokens == 0 || rejected->tokens == 0) return term(0, 0, 0);
        return orpo_term(p->beta, chosen->log_prob, rejected->log_prob);
    }
    const float c = log_ratio(p, i), r = log_ratio(p, i + p->terms);
    struct preference_term of = pair_term(p, p->beta * c, p->beta * r, p->beta * (c - r) - p->gamma);
    of.chosen *= p->beta;
    of.rejected *= p->beta;
    return of;
}

/* What a token of sequence s that counts is to the loss but for nll, times the upstream gradient. */
LIGER_HOST_DEVICE static inline float token_slope(const struct preference_loss_problem *p, int64_t s, float upstream) {
    const struct preference_term of = term_of(p, s % p->terms);
    const float slope = upstream * ((s < p->terms ? of.chosen : of.rejected) / (float)p->terms);
    return p->average && p->sums[s].tokens > 0 ? slope / p->sums[s].tokens : slope;
}

/* What a token that nll counts is to the loss besides. */
LIGER_HOST_DEVICE static inline float nll_slope(const struct preference_loss_problem *p, float nll_tokens,
                                                float upstream) {
    return p->alpha != 0 && nll_tokens > 0 ? upstream * (-p->alpha / nll_tokens) : 0.0f;
}

/* The results, from sums of terms and of what nll counts. */
LIGER_HOST_DEVICE static inline void store_losses(const struct preference_loss_problem *p, float terms, float nll,
                                                  float nll_tokens) {
    const float mean = nll_tokens > 0 ? -nll / nll_tokens : 0.0f;
    if (p->nll) *p->nll = mean;
    if (p->loss) *p->loss = (p->terms > 0 ? terms / (float)p->terms : 0) + (p->alpha == 0 ? 0 : p->alpha * mean);
}
LIGER_HOST_DEVICE static inline void store_sequence(const struct preference_loss_problem *p, int64_t s) {
    if (p->sequence_log_prob) p->sequence_log_prob[s] = p->sums[s].log_prob;
    if (p->reward) p->reward[s] = p->beta * log_ratio(p, s);
}

#endif
