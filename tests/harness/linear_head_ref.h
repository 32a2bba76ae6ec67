/* linear_head_ref.h - the products of a linear head as plain loops, for references of what stands on one. REAL: the type of
 * sums and products, double or float. */
#ifndef TESTS_HARNESS_LINEAR_HEAD_REF_H
#define TESTS_HARNESS_LINEAR_HEAD_REF_H

#include <stddef.h>

#include "tests/harness/head_ref.h"
#include "tests/harness/op_cases.h"

static void head_ref_logits(const struct head_ref *p) {
    for (int64_t r = 0; r < p->rows; r++) {
        for (int64_t j = 0; j < p->vocab; j++) {
            REAL sum = p->bias ? p->bias[j] : 0;
            for (int64_t h = 0; h < p->hidden; h++) sum += p->x[r * p->hidden + h] * p->weight[j * p->hidden + h];
            p->logits[r * p->vocab + j] = op_round(p->dtype, sum);
        }
    }
}

static void head_ref_dx(const struct head_ref *p, double *dx) {
    for (int64_t r = 0; dx && r < p->rows; r++) {
        for (int64_t h = 0; h < p->hidden; h++) {
            REAL sum = 0;
            for (int64_t j = 0; j < p->vocab; j++) sum += p->dlogits[r * p->vocab + j] * p->weight[j * p->hidden + h];
            dx[r * p->hidden + h] = sum;
        }
    }
}

/* The sum is rounded to `between` after every `chunk` rows but the last, whose rounding is the one at the store. */
static void head_ref_dweight(const struct head_ref *p, int64_t chunk, liger_dtype between, double *dweight) {
    for (int64_t i = 0; dweight && i < p->vocab * p->hidden; i++) {
        const int64_t j = i / p->hidden, h = i % p->hidden;
        REAL sum = 0;
        for (int64_t r = 0; r < p->rows; r++) {
            if (r > 0 && r % chunk == 0) sum = op_round(between, sum);
            sum += p->dlogits[r * p->vocab + j] * p->x[r * p->hidden + h];
        }
        dweight[i] = sum;
    }
}

static inline void head_ref_dbias(const struct head_ref *p, double *dbias) {
    for (int64_t j = 0; dbias && j < p->vocab; j++) {
        REAL sum = 0;
        for (int64_t r = 0; r < p->rows; r++) sum += p->dlogits[r * p->vocab + j];
        dbias[j] = sum;
    }
}

/* All three, from dlogits. */
static inline void head_ref_gradients(const struct head_ref *p) {
    head_ref_dx(p, p->dx);
    head_ref_dweight(p, p->chunk, p->dweight_dtype, p->dweight);
    head_ref_dbias(p, p->dbias);
}

#endif
