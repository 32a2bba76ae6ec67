/* preference_loss_ref.c - the preference losses, one sequence after the other.
 *
 * REAL: preference_loss_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/preference_loss/preference_loss_ref.h"

#include <float.h>
#include <math.h>

#include "liger/ops/preference_loss/preference_loss.h"

#ifndef REAL
#define REAL double
#endif

static REAL exponential(REAL x) { return (REAL)exp((double)x); }
static REAL logarithm(REAL x) { return (REAL)log((double)x); }
static REAL sigma(REAL x) { return 1 / (1 + exponential(-x)); }
/* An exponential that overflows is followed by the other form. */
static REAL log_sigma(REAL x) { return x < 0 ? x - logarithm(1 + exponential(x)) : -logarithm(1 + exponential(-x)); }
/* A weight of 0 takes no part, even of an infinity. */
static REAL times(REAL weight, REAL x) { return weight == 0 ? 0 : weight * x; }
/* log(odds) + log(1 - p), and its slope. */
static REAL log_other(REAL x) { return (REAL)log(-expm1(fmin((double)x, -(double)FLT_MIN))); }
static REAL log_other_slope(REAL x) {
    return (double)x > -(double)FLT_MIN ? 0 : -exponential(x) / (REAL)-expm1((double)x);
}

struct term {
    REAL loss, chosen, rejected; /* slopes in c and r */
};

static struct term on_difference(REAL scale, REAL loss, REAL slope) {
    return (struct term){loss, scale * slope, -scale * slope};
}

/* Of log-probabilities, from which those of the reference are taken. */
static struct term term_of_pair(const struct preference_loss_ref *p, REAL c, REAL r) {
    const REAL b = (REAL)p->beta, s = (REAL)p->label_smoothing, C = b * c, R = b * r, d = C - R, l = d - (REAL)p->gamma;
    const REAL up = sigma(d) * sigma(-d), t = d / (REAL)p->tau, m = sigma(t);
    const REAL odds = c - r - log_other(c) + log_other(r);
    switch (p->type) {
        case LIGER_PREFERENCE_SIGMOID: return on_difference(b, -log_sigma(d), -sigma(-d));
        case LIGER_PREFERENCE_HINGE:
            return on_difference(b, d < 1 ? 1 - d : d >= 1 ? 0 : d, d < 1 ? -1 : d >= 1 ? 0 : d);
        case LIGER_PREFERENCE_EXO_PAIR:
            return on_difference(
                b, sigma(d) * (log_sigma(d) - logarithm(1 - s)) + sigma(-d) * (log_sigma(-d) - logarithm(s)),
                up * (log_sigma(d) - logarithm(1 - s) - log_sigma(-d) + logarithm(s)));
        case LIGER_PREFERENCE_NCA_PAIR:
            return (struct term){-log_sigma(C) - (REAL)0.5 * (log_sigma(-C) + log_sigma(-R)),
                                 b * ((REAL)0.5 * sigma(C) - sigma(-C)), b * (REAL)0.5 * sigma(R)};
        case LIGER_PREFERENCE_ROBUST:
            return on_difference(b / (1 - 2 * s), (times(s, log_sigma(-d)) - (1 - s) * log_sigma(d)) / (1 - 2 * s),
                                 -s * sigma(d) - (1 - s) * sigma(-d));
        case LIGER_PREFERENCE_BCO_PAIR:
            return (struct term){-log_sigma(C) - log_sigma(-R), -b * sigma(-C), b * sigma(R)};
        case LIGER_PREFERENCE_SPPO_HARD:
            return (struct term){(c - 1 / (2 * b)) * (c - 1 / (2 * b)) + (r + 1 / (2 * b)) * (r + 1 / (2 * b)),
                                 2 * c - 1 / b, 2 * r + 1 / b};
        case LIGER_PREFERENCE_APO_ZERO:
            return (struct term){1 - sigma(C) + sigma(R), -b * sigma(C) * sigma(-C), b * sigma(R) * sigma(-R)};
        case LIGER_PREFERENCE_APO_DOWN:
            return (struct term){sigma(C) + 1 - sigma(d), b * (sigma(C) * sigma(-C) - up), b * up};
        case LIGER_PREFERENCE_DISCOPOP:
            return on_difference(b, -log_sigma(d) * sigma(-t) + exponential(log_sigma(t) - d),
                                 -sigma(-d) * sigma(-t) - exponential(log_sigma(t) - d) +
                                     sigma(-t) * (log_sigma(d) * m + exponential(log_sigma(t) - d)) / (REAL)p->tau);
        case LIGER_PREFERENCE_ORPO:
            return (struct term){-b * log_sigma(odds), -b * sigma(-odds) * (1 - log_other_slope(c)),
                                 b * sigma(-odds) * (1 - log_other_slope(r))};
        default: /* CPO; SIMPO has a gamma */
            return on_difference(b, times(s - 1, log_sigma(l)) - times(s, log_sigma(-l)),
                                 s * sigma(l) - (1 - s) * sigma(-l));
    }
}

/* Σ log_prob of a sequence, and over how many tokens. */
static REAL sum_of(const struct preference_loss_ref *p, const double *target, int64_t s, int64_t *tokens) {
    REAL sum = 0;
    for (int64_t i = s * p->tokens; i < (s + 1) * p->tokens; i++)
        if (target[i] != p->ignore_index) sum += (REAL)p->log_prob[i], ++*tokens;
    return sum;
}

/* The log-probability of a sequence. A slope in it is one in each of its tokens, divided by *by. */
static REAL answer(const struct preference_loss_ref *p, int64_t s, int64_t *tokens, REAL *by) {
    *tokens = 0;
    const REAL sum = sum_of(p, p->target, s, tokens);
    *by = p->average && *tokens > 0 ? (REAL)*tokens : 1;
    return sum / *by;
}

static void add_slope(const struct preference_loss_ref *p, const double *target, int64_t s, REAL slope, double *d) {
    const REAL up = p->upstream ? (REAL)*p->upstream : 1;
    for (int64_t i = s * p->tokens; d && i < (s + 1) * p->tokens; i++)
        if (target[i] != p->ignore_index) d[i] = (REAL)d[i] + up * slope;
}

static REAL nll_of(const struct preference_loss_ref *p, int64_t pairs, double *d_log_prob) {
    const double *target = p->nll_target ? p->nll_target : p->target;
    int64_t tokens = 0;
    REAL sum = 0;
    for (int64_t s = 0; s < pairs; s++) sum -= sum_of(p, target, s, &tokens);
    for (int64_t s = 0; s < pairs && p->alpha != 0; s++)
        add_slope(p, target, s, -(REAL)p->alpha / (REAL)tokens, d_log_prob);
    return tokens > 0 ? sum / (REAL)tokens : 0;
}

void preference_loss_reference(const struct preference_loss_ref *p, double *loss, double *nll,
                               double *sequence_log_prob, double *reward, double *d_log_prob) {
    const bool kto = p->type == LIGER_PREFERENCE_KTO;
    const int64_t terms = kto ? p->sequences : p->sequences / 2;
    REAL sum = 0;
    for (int64_t i = 0; d_log_prob && i < p->sequences * p->tokens; i++) d_log_prob[i] = 0;
    for (int64_t i = 0; i < p->sequences; i++) {
        int64_t tokens;
        REAL by;
        const REAL x = answer(p, i, &tokens, &by);
        if (sequence_log_prob) sequence_log_prob[i] = x;
        if (reward) reward[i] = (REAL)p->beta * (x - (p->reference ? (REAL)p->reference[i] : 0));
    }
    for (int64_t i = 0; i < terms; i++) {
        const int64_t j = kto ? i : i + terms;
        int64_t tokens, others;
        REAL by, by_other;
        REAL c = answer(p, i, &tokens, &by), r = answer(p, j, &others, &by_other);
        if (p->reference) c -= (REAL)p->reference[i], r -= (REAL)p->reference[j];
        if (p->type == LIGER_PREFERENCE_ORPO && (tokens == 0 || others == 0)) continue;
        if (kto) {
            const REAL sign = p->desirable[i] != 0 ? -1 : 1, beta = (REAL)p->beta;
            const REAL value = sigma(sign * beta * (c - (p->kl ? (REAL)*p->kl : 0)));
            sum += value;
            add_slope(p, p->target, i, sign * beta * value * (1 - value) / (REAL)terms / by, d_log_prob);
            continue;
        }
        const struct term term = term_of_pair(p, c, r);
        sum += term.loss;
        add_slope(p, p->target, i, term.chosen / (REAL)terms / by, d_log_prob);
        add_slope(p, p->target, j, term.rejected / (REAL)terms / by_other, d_log_prob);
    }
    const REAL text = nll_of(p, kto ? 0 : terms, d_log_prob);
    if (nll) *nll = text;
    if (loss) *loss = (terms > 0 ? sum / (REAL)terms : 0) + times((REAL)p->alpha, text);
}
