/* linear_topk_kl_ref.c - logits = x·weightᵀ + bias, the divergence of each row as it is defined, then the products.
 *
 * Rounded where the contract rounds: logits, their gradient, and dweight after each chunk but the last, whose rounding
 * is the one at the store. REAL: linear_topk_kl_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/linear_topk_kl/linear_topk_kl_ref.h"

#include <math.h>
#include <stdlib.h>

#ifndef REAL
#define REAL double
#endif
#include "tests/harness/distillation_rows.h"

/* Σ exp(z - max) over the ids that are listed, or over the others. */
static REAL sum_of(const REAL *z, const bool *listed, int64_t vocab, bool of_listed, REAL max) {
    REAL sum = 0;
    for (int64_t j = 0; j < vocab; j++)
        if (listed[j] == of_listed) sum += (REAL)exp(z[j] - max);
    return sum;
}
static REAL max_of(const REAL *z, const bool *listed, int64_t vocab, bool of_listed) {
    REAL max = -INFINITY;
    for (int64_t j = 0; j < vocab; j++)
        if (listed[j] == of_listed) max = (REAL)fmax(max, z[j]);
    return max;
}

/* 1 - Σ q, or 0 where it is rounding. */
static REAL rest_of(REAL mass, REAL rounding, bool outside) {
    const REAL rest = 1 - mass;
    if (rest < -rounding) return (REAL)NAN;
    return rest < 0 || (!outside && rest <= rounding) ? 0 : rest;
}

/* A row's z = logits/temperature and its list, by id. */
struct listed_row {
    REAL *z, *log_q; /* log_q: -inf where nothing is listed */
    bool *listed;
    REAL mass, rounding; /* Σ q, and what it may be off by */
};

static struct listed_row new_row(int64_t vocab) {
    struct listed_row row = {.z = calloc(2 * (size_t)vocab, sizeof *row.z)};
    row.listed = calloc((size_t)vocab, sizeof *row.listed);
    if (row.z == NULL || row.listed == NULL) abort();
    row.log_q = row.z + vocab;
    return row;
}

static void read_list(const struct linear_topk_kl_ref *p, int64_t r, struct listed_row *row) {
    const int64_t vocab = p->of.head.vocab;
    row->mass = 0, row->rounding = (REAL)0x1p-10;
    for (int64_t j = 0; j < vocab; j++) {
        row->z[j] = (REAL)(p->of.head.logits[r * vocab + j] / p->of.temperature);
        row->log_q[j] = -INFINITY, row->listed[j] = false;
    }
    for (int64_t i = 0; i < p->k; i++) {
        const double id = p->ids[r * p->k + i], log = p->logprobs[r * p->k + i];
        if (id < 0) continue;
        row->listed[(int64_t)id] = true, row->log_q[(int64_t)id] = (REAL)log;
        row->mass += (REAL)exp(log);
        row->rounding += isinf(log) ? 0 : (REAL)(exp(log) * fmax(-log, 0) * p->logprob_unit);
    }
}

static REAL one_row(const void *room, int64_t r, REAL by) {
    const struct linear_topk_kl_ref *p = room;
    const int64_t vocab = p->of.head.vocab;
    double *d = p->of.head.dlogits + r * vocab;
    struct listed_row row = new_row(vocab);
    read_list(p, r, &row);
    const REAL *z = row.z;
    const bool *listed = row.listed;
    const REAL of_listed = max_of(z, listed, vocab, true), outside = max_of(z, listed, vocab, false);
    const REAL max = (REAL)fmax(of_listed, outside);
    const REAL sum = sum_of(z, listed, vocab, true, max) + sum_of(z, listed, vocab, false, max);
    const bool something = outside != (REAL)-INFINITY;
    const REAL sum_outside = something ? sum_of(z, listed, vocab, false, outside) : 1;
    const REAL log_s = something ? outside - max + (REAL)log(sum_outside) - (REAL)log(sum) : (REAL)-INFINITY;
    const REAL rest = rest_of(row.mass, row.rounding, something), factor = rest > 0 ? 1 : row.mass;
    REAL loss = 0;
    for (int64_t j = 0; j < vocab; j++) {
        const REAL q = (REAL)exp(row.log_q[j]);
        if (listed[j] && q != 0) loss += q * (row.log_q[j] - (z[j] - max)) + q * (REAL)log(sum);
        const REAL softmax = (REAL)exp(z[j] - max) / sum * factor;
        const REAL of_rest = something ? (REAL)exp(z[j] - outside) / sum_outside : 0;
        const REAL slope = softmax - (listed[j] ? q : rest * of_rest);
        d[j] = op_round(p->of.head.dtype, slope * by / (REAL)p->of.temperature);
    }
    free(row.z);
    free(row.listed);
    return rest == 0 ? loss : loss + rest * ((REAL)log(rest) - log_s);
}

void linear_topk_kl_reference(const struct linear_topk_kl_ref *p) {
    head_ref_logits(&p->of.head);
    distillation_rows(&p->of, one_row, p);
}
