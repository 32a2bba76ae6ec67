/* policy_loss_ref.c - what a policy's loss is: the formulas of the header, a loop for each sum.
 *
 * REAL: policy_loss_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/policy_loss/policy_loss_ref.h"

#include <math.h>
#include <stdbool.h>

#ifndef REAL
#define REAL double
#endif

static REAL real_exp(REAL x) { return (REAL)exp((double)x); }
static REAL within(REAL x, REAL low, REAL high) { return x < low ? low : x > high ? high : x; }
static bool is_sequence_wise(const struct policy_loss_ref *p) { return p->args.level == LIGER_POLICY_SEQUENCE; }
static bool counts(const struct policy_loss_ref *p, int64_t at) { return p->mask == NULL || p->mask[at] != 0; }

static REAL ratio_of(const struct policy_loss_ref *p, int64_t i, int64_t t) {
    return p->ratio ? (REAL)p->ratio[i * p->ratio_cols + (p->ratio_cols > 1 ? t : 0)] : 1;
}

static REAL log_weight(const struct policy_loss_ref *p, const double *log_prob, int64_t at) {
    return (REAL)log_prob[at] - (REAL)(p->old_log_prob ? p->old_log_prob : p->held)[at];
}

static REAL length_of(const struct policy_loss_ref *p, int64_t i) {
    REAL length = 0;
    for (int64_t at = i * p->tokens; at < (i + 1) * p->tokens; at++) length += counts(p, at) ? 1 : 0;
    return length;
}

static REAL mean_log_weight(const struct policy_loss_ref *p, int64_t i, REAL length) {
    REAL sum = 0;
    for (int64_t at = i * p->tokens; at < (i + 1) * p->tokens; at++)
        if (counts(p, at)) sum += log_weight(p, p->log_prob, at);
    return sum / (length < 1 ? 1 : length);
}

static REAL phi_of(const struct policy_loss_ref *p, int64_t i) {
    const REAL least = (REAL)log(1e-8);
    const bool positive = p->advantage[i] >= 0;
    const REAL k = (REAL)(positive ? p->args.vespo_k_pos : p->args.vespo_k_neg);
    const REAL given = (REAL)(positive ? p->args.vespo_lambda_pos : p->args.vespo_lambda_neg);
    const REAL lambda = given < (REAL)1e-4 ? (REAL)1e-4 : given;
    REAL u = 0;
    for (int64_t at = i * p->tokens; at < (i + 1) * p->tokens; at++)
        if (counts(p, at)) u += within(log_weight(p, p->held, at), -20, 20);
    for (int64_t t = 0; p->ratio && t < p->ratio_cols; t++)
        u += within((REAL)log((double)ratio_of(p, i, t)), least, 20);
    u = within(u, least, 20);
    const REAL phi = real_exp(lambda + k * u - lambda * real_exp(u));
    return isfinite(phi) ? phi : 0;
}

/* A term, and its derivatives by log w and by the log-probability where w is held. */
struct term {
    REAL loss, kl, by_weight, by_log_prob;
    bool clipped;
};

static struct term objective(const struct policy_loss_ref *p, int64_t i, int64_t at, REAL w, REAL phi) {
    const liger_policy_loss_args *args = &p->args;
    const REAL a = (REAL)p->advantage[i], log_prob = (REAL)p->log_prob[at], ratio = ratio_of(p, i, at % p->tokens);
    struct term term = {.loss = 0};
    switch (args->loss_type) {
        case LIGER_POLICY_SAPO: {
            const REAL tau = (REAL)(a > 0 ? args->sapo_temperature_pos : args->sapo_temperature_neg);
            const REAL e = real_exp(-(REAL)fabs((double)(tau * (w - 1)))), slope = e / ((1 + e) * (1 + e));
            term.loss = -a * 4 / tau * (w < 1 ? e : 1) / (1 + e) * ratio;
            term.by_weight = slope == 0 ? 0 : -a * 4 * slope * w * ratio;
            break;
        }
        case LIGER_POLICY_VESPO:
            term.by_log_prob = -phi * a;
            term.loss = term.by_log_prob * log_prob;
            break;
        case LIGER_POLICY_CISPO: {
            const REAL bound = (REAL)args->epsilon_high, held = real_exp(log_weight(p, p->held, at));
            term.by_log_prob = -(held > bound ? bound : held) * a * ratio;
            term.loss = term.by_log_prob * log_prob;
            term.clipped = held > bound && a > 0;
            break;
        }
        default: {
            const REAL low = (REAL)(1 - args->epsilon_low), high = (REAL)(1 + args->epsilon_high);
            const REAL most = args->delta > 0 ? (REAL)args->delta : (REAL)INFINITY;
            const REAL bounded = (w > most ? most : w) * a, clipped = within(w, low, high) * a;
            const bool constant = clipped < bounded ? w < low || w > high : w > most;
            term.loss = -(clipped < bounded ? clipped : bounded) * ratio;
            term.by_weight = constant ? 0 : -w * a * ratio;
            term.clipped = (w < low && a < 0) || (w > high && a > 0);
        }
    }
    return term;
}

static struct term term_of(const struct policy_loss_ref *p, int64_t i, int64_t at, REAL length, REAL mean, REAL phi) {
    const REAL beta = (REAL)p->args.beta;
    const REAL w = real_exp(is_sequence_wise(p) ? mean : log_weight(p, p->log_prob, at));
    struct term term = objective(p, i, at, w, phi);
    if (beta == 0) return term;
    const REAL x = (REAL)(p->ref_log_prob ? p->ref_log_prob : p->held)[at] - (REAL)p->log_prob[at];
    const REAL factor = p->args.corrects_kl ? w : 1, slope = (REAL)expm1((double)x);
    term.kl = (slope - x) * factor;
    term.loss += beta * term.kl;
    const bool own = !is_sequence_wise(p) || (length == 1 && counts(p, at));
    if (p->args.corrects_kl && own) { /* d of w·(e^x - x - 1), w = e^(log_prob - old) */
        term.by_log_prob -= beta * x * w;
    } else {
        term.by_weight += p->args.corrects_kl ? beta * term.kl : 0;
        term.by_log_prob -= beta * slope * factor;
    }
    return term;
}

/* What the terms of a sequence are divided by. */
static REAL divisor_of(const struct policy_loss_ref *p, REAL length, REAL all) {
    const REAL sequences = (REAL)p->sequences;
    switch (p->args.loss_type) {
        case LIGER_POLICY_GRPO:
        case LIGER_POLICY_SAPO: return sequences * (length < 1 ? 1 : length);
        case LIGER_POLICY_DR_GRPO: return sequences * (REAL)p->args.max_completion_length;
        case LIGER_POLICY_LUSPO: return sequences * (REAL)p->tokens / length;
        case LIGER_POLICY_BNPO: break;
        default:
            if (p->num_items) all = (REAL)*p->num_items;
    }
    return all < 1 ? 1 : all;
}

void policy_loss_reference(const struct policy_loss_ref *p, double *loss, double *kl, double *clip_ratio,
                           double *d_log_prob) {
    const bool everywhere = p->args.loss_type == LIGER_POLICY_LUSPO;
    REAL all = 0, total = 0, kl_sum = 0, clipped = 0;
    for (int64_t i = 0; i < p->sequences; i++) all += length_of(p, i);
    for (int64_t i = 0; i < p->sequences; i++) {
        const REAL length = length_of(p, i), divisor = divisor_of(p, length, all);
        const REAL mean = mean_log_weight(p, i, length);
        const REAL phi = p->args.loss_type == LIGER_POLICY_VESPO ? phi_of(p, i) : 0;
        REAL by_mean = 0;
        for (int64_t at = i * p->tokens; at < (i + 1) * p->tokens; at++) {
            if (d_log_prob) d_log_prob[at] = 0;
            if (!counts(p, at) && !everywhere) continue;
            const struct term term = term_of(p, i, at, length, mean, phi);
            total += term.loss / divisor;
            by_mean += term.by_weight / divisor;
            if (d_log_prob) d_log_prob[at] = (term.by_log_prob + (is_sequence_wise(p) ? 0 : term.by_weight)) / divisor;
            if (!counts(p, at)) continue;
            kl_sum += term.kl;
            clipped += term.clipped ? 1 : 0;
        }
        for (int64_t at = i * p->tokens; at < (i + 1) * p->tokens; at++) {
            if (!d_log_prob || (!counts(p, at) && !everywhere)) continue;
            if (is_sequence_wise(p) && counts(p, at)) d_log_prob[at] += by_mean / length;
            d_log_prob[at] *= p->upstream ? *p->upstream : 1;
        }
    }
    if (loss) *loss = total;
    if (kl) *kl = kl_sum / (all < 1 ? 1 : all);
    if (clip_ratio) *clip_ratio = clipped / (all < 1 ? 1 : all);
}
