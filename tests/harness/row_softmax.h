/* row_softmax.h - the largest value of a row and Σ exp, for references and budgets. REAL: the type of what is computed, double or
 * float. */
#ifndef TESTS_HARNESS_ROW_SOFTMAX_H
#define TESTS_HARNESS_ROW_SOFTMAX_H

#include <math.h>
#include <stdint.h>

/* Relative to the largest: next to a huge one the logarithm of the sum would be lost. */
struct row_softmax {
    REAL max, sum;
};

static inline struct row_softmax row_softmax(const double *x, int64_t count, double temperature) {
    struct row_softmax row = {-INFINITY, 0};
    for (int64_t j = 0; j < count; j++) row.max = (REAL)fmax(row.max, (REAL)(x[j] / temperature));
    for (int64_t j = 0; j < count; j++) row.sum += (REAL)exp((REAL)(x[j] / temperature) - row.max);
    return row;
}

static inline REAL row_log_sum_exp(const double *x, int64_t count, double temperature) {
    const struct row_softmax row = row_softmax(x, count, temperature);
    return row.max + (REAL)log(row.sum);
}

#endif
