/* swiglu_problem.h - what a backend sees of SwiGLU: flat, checked, no views.
 *
 * Tensors that lie in one piece come as one long row: rows == 1. Every input of an element is read before an output of
 * that element is written, because outputs may be inputs. */
#ifndef LIGER_OPS_SWIGLU_PROBLEM_H
#define LIGER_OPS_SWIGLU_PROBLEM_H

#include "liger/core/rows.h"

struct swiglu_forward_problem {
    liger_dtype dtype;
    liger_dtype activation_dtype; /* of the rounded silu; never NONE */
    int64_t rows, cols;           /* both 1 or more */
    liger_rows gate, up, y;
    float gate_multiplier, down_multiplier;
};

struct swiglu_backward_problem {
    liger_dtype dtype;
    int64_t rows, cols;
    liger_rows dy, gate, up;
    liger_rows dgate, dup; /* .data NULL: not computed; never both */
    float gate_multiplier, down_multiplier;
};

#endif
