/* sparsemax_problem.h - what a backend sees: flat, checked, no views.
 *
 * An output may be an input: nothing of a row is written before all of it has been summed up. */
#ifndef LIGER_OPS_SPARSEMAX_PROBLEM_H
#define LIGER_OPS_SPARSEMAX_PROBLEM_H

#include "liger/core/rows.h"

/* Words of a row of `support`, 32 elements each: word r · support_words(cols) is the first of row r. */
LIGER_HOST_DEVICE static inline int64_t support_words(int64_t cols) { return (cols + 31) / 32; }

struct sparsemax_forward_problem {
    liger_dtype dtype;
    int64_t rows, cols; /* both 1 or more */
    liger_rows x, y;
    uint32_t *support;
};

struct sparsemax_backward_problem {
    liger_dtype dtype;
    int64_t rows, cols;
    liger_rows dy, dx;
    const uint32_t *support;
};

#endif
