/* linear_topk_kl_ref.c - logits = x·weightᵀ + bias, the divergence of each row as it is defined, then the products.
 *
 * Rounded where the contract rounds: logits, their gradient, and dweight after each chunk but the last, whose rounding
 * is the one at the store. REAL: linear_topk_kl_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/linear_topk_kl/linear_topk_kl_ref.h"

#include <math.h>
#include <stdlib.h>

#include "liger/ops/linear_topk_kl/linear_topk_kl.h"

#ifndef REAL
#define REAL double
bool linear_topk_kl_counts(const struct linear_topk_kl_ref *p, int64_t r) {
    return p->labels == NULL || (int64_t)p->labels[r] != p->ignore_index;
}
double linear_topk_kl_weight(const struct linear_topk_kl_ref *p) {
    int64_t count = 0;
    for (int64_t r = 0; r < p->rows; r++) count += linear_topk_kl_counts(p, r);
    if (p->reduction == LIGER_LINEAR_KL_SUM) return 1;
    return 1 / ((double)count * (p->reduction == LIGER_LINEAR_KL_MEAN ? (double)p->vocab : 1));
}
#endif
#include "tests/harness/linear_head_ref.h"

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

static REAL one_row(const struct linear_topk_kl_ref *p, int64_t r, REAL by, REAL *z, REAL *log_q, bool *listed) {
    double *d = p->dlogits + r * p->vocab;
    REAL mass = 0, rounding = (REAL)0x1p-10, loss = 0;
    for (int64_t j = 0; j < p->vocab; j++)
        z[j] = (REAL)(p->logits[r * p->vocab + j] / p->temperature), log_q[j] = -INFINITY, listed[j] = false;
    for (int64_t i = 0; i < p->k; i++) {
        const double id = p->ids[r * p->k + i], log = p->logprobs[r * p->k + i];
        if (id < 0) continue;
        listed[(int64_t)id] = true, log_q[(int64_t)id] = (REAL)log;
        mass += (REAL)exp(log);
        rounding += isinf(log) ? 0 : (REAL)(exp(log) * fmax(-log, 0) * p->logprob_unit);
    }
    const REAL of_listed = max_of(z, listed, p->vocab, true), outside = max_of(z, listed, p->vocab, false);
    const REAL max = (REAL)fmax(of_listed, outside);
    const REAL sum = sum_of(z, listed, p->vocab, true, max) + sum_of(z, listed, p->vocab, false, max);
    const bool something = outside != (REAL)-INFINITY;
    const REAL sum_outside = something ? sum_of(z, listed, p->vocab, false, outside) : 1;
    const REAL log_s = something ? outside - max + (REAL)log(sum_outside) - (REAL)log(sum) : (REAL)-INFINITY;
    const REAL rest = rest_of(mass, rounding, something), factor = rest > 0 ? 1 : mass;
    for (int64_t j = 0; j < p->vocab; j++) {
        const REAL q = (REAL)exp(log_q[j]);
        if (listed[j] && q != 0) loss += q * (log_q[j] - (z[j] - max)) + q * (REAL)log(sum);
        const REAL softmax = (REAL)exp(z[j] - max) / sum * factor;
        const REAL of_rest = something ? (REAL)exp(z[j] - outside) / sum_outside : 0;
        d[j] = op_round(p->dtype, (softmax - (listed[j] ? q : rest * of_rest)) * by / (REAL)p->temperature);
    }
    return rest == 0 ? loss : loss + rest * ((REAL)log(rest) - log_s);
}

void linear_topk_kl_reference(const struct linear_topk_kl_ref *p) {
    const struct head_ref head = {
        .rows = p->rows,
        .hidden = p->hidden,
        .vocab = p->vocab,
        .dtype = p->dtype,
        .x = p->x,
        .weight = p->weight,
        .bias = p->bias,
        .logits = p->logits,
        .dlogits = p->dlogits,
    };
    const REAL weight = (REAL)linear_topk_kl_weight(p);
    REAL total = 0, *z = calloc(2 * (size_t)p->vocab, sizeof *z);
    bool *listed = calloc((size_t)p->vocab, sizeof *listed);
    if (z == NULL || listed == NULL) abort();
    head_ref_logits(&head);
    for (int64_t r = 0; r < p->rows; r++) {
        const bool counts = linear_topk_kl_counts(p, r);
        for (int64_t j = 0; !counts && j < p->vocab; j++) p->dlogits[r * p->vocab + j] = 0;
        if (counts) total += one_row(p, r, p->raw_gradient ? 1 : weight, z, z + p->vocab, listed) * weight;
    }
    free(z);
    free(listed);
    if (p->loss) *p->loss = total;
    head_ref_dx(&head, p->dx);
    head_ref_dweight(&head, p->chunk, p->dweight_dtype, p->dweight);
    head_ref_dbias(&head, p->dbias);
}
