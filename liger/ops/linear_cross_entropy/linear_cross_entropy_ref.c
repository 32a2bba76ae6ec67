/* linear_cross_entropy_ref.c - logits = x·weightᵀ + bias, then the reference of cross entropy, then the products.
 *
 * Rounded where the contract rounds: logits, their gradient, and dweight after each chunk but the last, whose rounding
 * is the one at the store. REAL: linear_cross_entropy_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/linear_cross_entropy/linear_cross_entropy_ref.h"

#include <stddef.h>

#include "liger/ops/cross_entropy/cross_entropy.h"

#ifndef REAL
#define REAL double
#endif
#include "tests/harness/linear_head_ref.h"

/* Rows that count, the sum of their class weights, the sum of all class weights. */
static void count(const struct linear_cross_entropy_ref *p, double *counts) {
    for (int i = 0; i < 4; i++) counts[i] = 0;
    for (int64_t r = 0; r < p->loss.rows; r++) {
        if (p->loss.target[r] == p->loss.ignore_index) continue;
        counts[0] += 1;
        counts[1] += p->loss.weight ? p->loss.weight[(int64_t)p->loss.target[r]] : 1;
    }
    for (int64_t j = 0; p->loss.weight && j < p->loss.vocab; j++) counts[2] += p->loss.weight[j];
}

static void make_dlogits(const struct linear_cross_entropy_ref *p) {
    double counts[4];
    count(p, counts);
    for (int i = 0; p->counts && i < 4; i++) p->counts[i] = counts[i];
    const bool undo = p->raw_gradient && p->loss.reduction == LIGER_REDUCTION_MEAN;
    for (int64_t i = 0; i < p->loss.rows * p->loss.vocab; i++)
        p->head.dlogits[i] = op_round(p->head.dtype, p->head.dlogits[i] * (undo ? counts[1] : 1));
}

void linear_cross_entropy_reference(struct linear_cross_entropy_ref p) {
    head_ref_logits(&p.head);
    p.loss.logits = p.head.logits, p.loss.dlogits = p.head.dlogits;
    cross_entropy_reference(&p.loss);
    make_dlogits(&p);
    head_ref_gradients(&p.head);
}
