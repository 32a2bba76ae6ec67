/* linear_kl_div_ref.c - logits = x·weightᵀ, the divergence of each row as it is defined, then the products.
 *
 * Rounded where the contract rounds: logits, their gradient, and dweight after each chunk but the last, whose rounding
 * is the one at the store. REAL: linear_kl_div_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/linear_kl_div/linear_kl_div_ref.h"

#include <math.h>

#include "liger/ops/linear_kl_div/linear_kl_div.h"

#ifndef REAL
#define REAL double
double linear_kl_div_weight(const struct linear_kl_div_ref *p) {
    int64_t count = 0;
    for (int64_t r = 0; r < p->rows; r++) count += p->labels == NULL || (int64_t)p->labels[r] != p->ignore_index;
    if (p->reduction == LIGER_LINEAR_KL_SUM) return 1;
    return 1 / ((double)count * (p->reduction == LIGER_LINEAR_KL_MEAN ? (double)p->vocab : 1));
}
#endif
#include "tests/harness/linear_head_ref.h"

static REAL one_row(const struct linear_kl_div_ref *p, int64_t r, REAL by) {
    const double *logits = p->logits + r * p->vocab, *q = p->target + r * p->vocab;
    double *d = p->dlogits + r * p->vocab;
    REAL max = -INFINITY, sum = 0, mass = 0, loss = 0;
    for (int64_t j = 0; j < p->vocab; j++) max = (REAL)fmax(max, (REAL)(logits[j] / p->temperature));
    for (int64_t j = 0; j < p->vocab; j++)
        sum += (REAL)exp((REAL)(logits[j] / p->temperature) - max), mass += (REAL)q[j];
    for (int64_t j = 0; j < p->vocab; j++)
        if (q[j] != 0)
            loss += (REAL)q[j] * ((REAL)log(fmax(q[j], p->eps)) - ((REAL)(logits[j] / p->temperature) - max));
    for (int64_t j = 0; j < p->vocab; j++) {
        const REAL softmax = (REAL)exp((REAL)(logits[j] / p->temperature) - max) / sum;
        d[j] = op_round(p->dtype, (softmax * mass - (REAL)q[j]) * by / (REAL)p->temperature);
    }
    return loss + (REAL)log(sum) * mass;
}

void linear_kl_div_reference(const struct linear_kl_div_ref *p) {
    const struct head_ref head = {
        .rows = p->rows,
        .hidden = p->hidden,
        .vocab = p->vocab,
        .dtype = p->dtype,
        .x = p->x,
        .weight = p->weight,
        .logits = p->logits,
        .dlogits = p->dlogits,
    };
    const REAL weight = (REAL)linear_kl_div_weight(p);
    REAL total = 0;
    head_ref_logits(&head);
    for (int64_t r = 0; r < p->rows; r++) {
        const bool counts = p->labels == NULL || (int64_t)p->labels[r] != p->ignore_index;
        for (int64_t j = 0; !counts && j < p->vocab; j++) p->dlogits[r * p->vocab + j] = 0;
        if (counts) total += one_row(p, r, p->raw_gradient ? 1 : weight) * weight;
    }
    if (p->loss) *p->loss = total;
    head_ref_dx(&head, p->dx);
    head_ref_dweight(&head, p->chunk, p->dweight_dtype, p->dweight);
}
