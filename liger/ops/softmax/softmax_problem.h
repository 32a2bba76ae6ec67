/* softmax_problem.h - what a backend sees: flat, checked, no views.
 *
 * An output may be an input: nothing of a row is written before all of it has been summed up. */
#ifndef LIGER_OPS_SOFTMAX_PROBLEM_H
#define LIGER_OPS_SOFTMAX_PROBLEM_H

#include "liger/core/rows.h"

struct softmax_forward_problem {
    liger_dtype dtype;
    int64_t rows, cols; /* both 1 or more */
    liger_rows x, y;
};

struct softmax_backward_problem {
    liger_dtype dtype;
    int64_t rows, cols;
    liger_rows dy, y, dx;
};

#endif
