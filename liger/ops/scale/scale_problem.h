/* scale_problem.h - y[i] = x[i] · scale: an upstream gradient applied to a saved one, or a cast of an accumulator. */
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
};

#endif
