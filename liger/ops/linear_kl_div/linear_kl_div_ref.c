/* linear_kl_div_ref.c - logits = x·weightᵀ, the divergence of each row as it is defined, then the products.
 *
 * Rounded where the contract rounds: logits, their gradient, and dweight after each chunk but the last, whose rounding
 * is the one at the store. REAL: linear_kl_div_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/linear_kl_div/linear_kl_div_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double
#endif
#include "tests/harness/distillation_rows.h"
#include "tests/harness/row_softmax.h"

static REAL one_row(const void *room, int64_t r, REAL by) {
    const struct linear_kl_div_ref *p = room;
    const struct head_ref *head = &p->of.head;
    const double temperature = p->of.temperature;
    const double *logits = head->logits + r * head->vocab, *q = p->target + r * head->vocab;
    const struct row_softmax row = row_softmax(logits, head->vocab, temperature);
    REAL mass = 0, loss = 0;
    for (int64_t j = 0; j < head->vocab; j++) mass += (REAL)q[j];
    for (int64_t j = 0; j < head->vocab; j++)
        if (q[j] != 0)
            loss += (REAL)q[j] * ((REAL)log(fmax(q[j], p->eps)) - ((REAL)(logits[j] / temperature) - row.max));
    for (int64_t j = 0; j < head->vocab; j++) {
        const REAL softmax = (REAL)exp((REAL)(logits[j] / temperature) - row.max) / row.sum;
        const REAL d = (softmax * mass - (REAL)q[j]) * by / (REAL)temperature;
        head->dlogits[r * head->vocab + j] = op_round(head->dtype, d);
    }
    return loss + (REAL)log(row.sum) * mass;
}

void linear_kl_div_reference(const struct linear_kl_div_ref *p) {
    head_ref_logits(&p->of.head);
    distillation_rows(&p->of, one_row, p);
}
