/* scale_problem.h - y[i] = x[i] · scale: an upstream gradient applied to a saved one, or a cast of an accumulator.
 *
 * Rows of x that a loss has ignored are zeros. They are to stay so when scale is infinite or NaN, which is the only time that
 * a kernel looks at targets. */
#ifndef LIGER_OPS_SCALE_PROBLEM_H
#define LIGER_OPS_SCALE_PROBLEM_H

#include <stdint.h>

#include "liger/core/tensor.h"

struct scale_problem {
    liger_dtype x_dtype, y_dtype;
    int64_t count;
    const void *x;      /* contiguous */
    void *y;            /* may be x if the dtypes are equal; then nothing is moved when scale is 1 */
    const float *scale; /* one value in the device's memory; NULL = 1 */
    const void *target; /* [rows], contiguous; or NULL */
    liger_dtype target_dtype;
    int64_t rows, ignore_index; /* with a target only; count is a multiple of rows */
};

#endif
