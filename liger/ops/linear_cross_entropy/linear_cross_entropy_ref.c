/* linear_cross_entropy_ref.c - logits = x·weightᵀ + bias, then the reference of cross entropy, then the products.
 *
 * Rounded where the contract rounds: logits, their gradient, and dweight after each chunk but the last, whose rounding
 * is the one at the store. REAL: linear_cross_entropy_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/linear_cross_entropy/linear_cross_entropy_ref.h"

#include <stddef.h>

#include "liger/ops/cross_entropy/cross_entropy.h"
#include "tests/harness/op_cases.h"

#ifndef REAL
#define REAL double
#endif

static void make_logits(const struct linear_cross_entropy_ref *p) {
    const int64_t vocab = p->loss.vocab;
    for (int64_t r = 0; r < p->loss.rows; r++) {
        for (int64_t j = 0; j < vocab; j++) {
            REAL sum = p->bias ? p->bias[j] : 0;
            for (int64_t h = 0; h < p->hidden; h++) sum += p->x[r * p->hidden + h] * p->weight[j * p->hidden + h];
            p->logits[r * vocab + j] = op_round(p->dtype, sum);
        }
    }
}

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
        p->dlogits[i] = op_round(p->dtype, p->dlogits[i] * (undo ? counts[1] : 1));
}

static void make_dx(const struct linear_cross_entropy_ref *p) {
    for (int64_t r = 0; p->dx && r < p->loss.rows; r++) {
        for (int64_t h = 0; h < p->hidden; h++) {
            REAL sum = 0;
            for (int64_t j = 0; j < p->loss.vocab; j++)
                sum += p->dlogits[r * p->loss.vocab + j] * p->weight[j * p->hidden + h];
            p->dx[r * p->hidden + h] = sum;
        }
    }
}

static void make_dweight(const struct linear_cross_entropy_ref *p) {
    for (int64_t i = 0; p->dweight && i < p->loss.vocab * p->hidden; i++) {
        const int64_t j = i / p->hidden, h = i % p->hidden;
        REAL sum = 0;
        for (int64_t r = 0; r < p->loss.rows; r++) {
            if (r > 0 && r % p->chunk == 0) sum = op_round(p->dweight_dtype, sum);
            sum += p->dlogits[r * p->loss.vocab + j] * p->x[r * p->hidden + h];
        }
        p->dweight[i] = sum;
    }
}

static void make_dbias(const struct linear_cross_entropy_ref *p) {
    for (int64_t j = 0; p->dbias && j < p->loss.vocab; j++) {
        REAL sum = 0;
        for (int64_t r = 0; r < p->loss.rows; r++) sum += p->dlogits[r * p->loss.vocab + j];
        p->dbias[j] = sum;
    }
}

void linear_cross_entropy_reference(struct linear_cross_entropy_ref p) {
    make_logits(&p);
    p.loss.logits = p.logits, p.loss.dlogits = p.dlogits;
    cross_entropy_reference(&p.loss);
    make_dlogits(&p);
    make_dx(&p);
    make_dweight(&p);
    make_dbias(&p);
}
