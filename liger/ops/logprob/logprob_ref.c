/* logprob_ref.c - the statistics of rows of logits, and their gradient, which is rounded where the contract rounds.
 *
 * REAL: logprob_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/logprob/logprob_ref.h"

#include <math.h>
#include <stdbool.h>

#include "tests/harness/op_cases.h"

#ifndef REAL
#define REAL double
#endif

static bool ignored(const struct logprob_ref *p, int64_t r) { return (int64_t)p->target[r] == p->ignore_index; }

/* ---- one row ------------------------------------------------------------------------------------------------------ */

static REAL tanh_of(const struct logprob_ref *p, REAL logit) { return tanh(p->scale * logit / p->softcap); }
static REAL z_of(const struct logprob_ref *p, REAL logit) {
    return (p->softcap > 0 ? p->softcap * tanh_of(p, logit) : p->scale * logit) / p->temperature;
}

struct row {
    REAL max, log_sum, entropy, squares, mean; /* squares: Σ p² */
};

static REAL log_p(const struct logprob_ref *p, const struct row *row, REAL logit) {
    return z_of(p, logit) - row->max - row->log_sum;
}

static struct row read_row(const struct logprob_ref *p, const double *logits) {
    struct row row = {-INFINITY, 0, 0, 0, 0};
    REAL sum = 0;
    for (int64_t j = 0; j < p->vocab; j++)
        if (z_of(p, logits[j]) > row.max) row.max = z_of(p, logits[j]);
    for (int64_t j = 0; j < p->vocab; j++) sum += exp(z_of(p, logits[j]) - row.max);
    row.log_sum = log(sum);
    for (int64_t j = 0; j < p->vocab; j++) {
        const REAL lp = log_p(p, &row, logits[j]), probability = exp(lp);
        if (probability != 0) row.entropy -= probability * lp;
        row.squares += probability * probability;
        row.mean += z_of(p, logits[j]);
    }
    row.mean /= (REAL)p->vocab;
    return row;
}

/* Of the largest logits, or of the smallest if scale is negative, the first; all are alike if it is 0. */
static bool is_first_max(const struct logprob_ref *p, const double *logits, int64_t y) {
    const double sign = p->scale > 0 ? 1 : p->scale < 0 ? -1 : 0;
    for (int64_t j = 0; j < p->vocab; j++) {
        const double ahead = sign * logits[j] - sign * logits[y];
        if (ahead > 0 || (ahead == 0 && j < y)) return false;
    }
    return true;
}

static void put(double *to, int64_t at, REAL value) {
    if (to) to[at] = value;
}

/* ---- forward ------------------------------------------------------------------------------------------------------ */

void logprob_reference_forward(struct logprob_ref p) {
    for (int64_t r = 0; r < p.rows; r++) {
        const double *logits = p.logits + r * p.vocab;
        const int64_t y = (int64_t)p.target[r];
        const bool counts = !ignored(&p, r);
        const struct row row = counts ? read_row(&p, logits) : (struct row){0, 0, 0, 0, 0};
        put(p.log_prob, r, counts ? log_p(&p, &row, logits[y]) : 0);
        put(p.entropy, r, row.entropy);
        put(p.lse, r, row.max + row.log_sum);
        put(p.log_sum_sq_probs, r, counts ? log(row.squares) : 0);
        put(p.mean_logits, r, row.mean);
        put(p.is_top1, r, counts && !isnan(row.log_sum) && is_first_max(&p, logits, y));
        for (int64_t k = 0; p.selected && k < p.ids; k++)
            put(p.selected, r * p.ids + k, counts ? log_p(&p, &row, logits[(int64_t)p.selected_ids[k]]) : 0);
        put(p.normalizer, 2 * r, row.max);
        put(p.normalizer, 2 * r + 1, row.log_sum);
    }
}

/* ---- backward ----------------------------------------------------------------------------------------------------- */

static REAL at(const double *upstream, int64_t i) { return upstream ? upstream[i] : 0; }

/* dz of element j, and the magnitudes that it is made of. */
static REAL dz_of(const struct logprob_ref *p, const struct row *row, int64_t r, int64_t j, REAL lp, double *terms) {
    const REAL probability = exp(lp), v = at(p->d_entropy, r), q = at(p->d_log_sum_sq_probs, r);
    const REAL u = at(p->d_log_prob, r), l = at(p->d_lse, r), m = at(p->d_mean_logits, r) / (REAL)p->vocab;
    const REAL from_u = u * (u != 0 && j == (int64_t)p->target[r] ? -expm1(p->of_log_prob[r]) : -probability);
    const REAL from_v = v != 0 && probability != 0 ? -v * probability * (lp + row->entropy) : 0;
    const REAL from_q = q != 0 ? 2 * q * (probability * probability / row->squares - probability) : 0;
    REAL dz = from_u + from_v + l * probability + from_q + m;
    *terms = fabs(from_u) + fabs(m) + probability * (fabs(l) + 4 * fabs(q));
    if (from_v != 0) *terms += fabs(v) * probability * (fabs(lp) + row->entropy);
    for (int64_t k = 0; p->d_selected && k < p->ids; k++) {
        const REAL w = p->d_selected[r * p->ids + k], hit = j == (int64_t)p->selected_ids[k] ? 1 : 0;
        dz += w * (hit - probability);
        *terms += fabs(w) * (hit + probability);
    }
    return dz;
}

static void make_dlogits(const struct logprob_ref *p, int64_t r) {
    const double *logits = p->logits + r * p->vocab;
    const bool counts = !ignored(p, r);
    const struct row row = {
        .max = p->of_normalizer[2 * r],
        .log_sum = p->of_normalizer[2 * r + 1],
        .entropy = at(p->of_entropy, r),
        .squares = exp(at(p->of_squares, r)),
    };
    for (int64_t j = 0; j < p->vocab; j++) {
        double terms = 0;
        REAL d = counts ? dz_of(p, &row, r, j, log_p(p, &row, logits[j]), &terms) : 0,
             slope = p->scale / p->temperature;
        if (p->softcap > 0) slope *= 1 - tanh_of(p, logits[j]) * tanh_of(p, logits[j]);
        p->dlogits[r * p->vocab + j] = op_round(p->dtype, d * slope);
        if (p->terms) p->terms[r * p->vocab + j] = terms * fabs(slope);
    }
}

void logprob_reference_backward(struct logprob_ref p) {
    for (int64_t r = 0; r < p.rows; r++) make_dlogits(&p, r);
}
