/* geglu_problem.h - what a backend sees of GeGLU: flat, checked, no views.
 *
 * Tensors that lie in one piece come as one long row: rows == 1. Every input of an element is read before an output of
 * that element is written, because outputs may be inputs. */
#ifndef LIGER_OPS_GEGLU_PROBLEM_H
#define LIGER_OPS_GEGLU_PROBLEM_H

#include "liger/core/rows.h"

struct geglu_forward_problem {
    liger_dtype dtype;
    liger_dtype activation_dtype; /* of the rounded gelu; never NONE */
    int64_t rows, cols;           /* both 1 or more */
    liger_rows gate, up, y;
};

struct geglu_backward_problem {
    liger_dtype dtype;
    int64_t rows, cols;
    liger_rows dy, gate, up;
    liger_rows dgate, dup; /* .data NULL: not computed; never both */
};

#endif
