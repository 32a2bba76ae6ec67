/* relu_squared_problem.h - what a backend sees: flat, checked, no views.
 *
 * Tensors that lie in one piece come as one long row: rows == 1. Every input of an element is read before an output of that
 * element is written, because outputs may be inputs. */
#ifndef LIGER_OPS_RELU_SQUARED_PROBLEM_H
#define LIGER_OPS_RELU_SQUARED_PROBLEM_H

#include "liger/core/rows.h"

struct relu_squared_forward_problem {
    liger_dtype dtype;
    int64_t rows, cols; /* both 1 or more */
    liger_rows x, y;
};

struct relu_squared_backward_problem {
    liger_dtype dtype;
    int64_t rows, cols;
    liger_rows dy, x, dx;
};

#endif
