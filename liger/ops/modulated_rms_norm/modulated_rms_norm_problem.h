/* modulated_rms_norm_problem.h - what a backend sees: flat, checked, no views. */
#ifndef LIGER_OPS_MODULATED_RMS_NORM_PROBLEM_H
#define LIGER_OPS_MODULATED_RMS_NORM_PROBLEM_H

#include "liger/core/norm_partials.h"
#include "liger/core/rows.h"

/* Where values are rounded to T: liger_casting. */
enum { MODULATED_LLAMA, MODULATED_GEMMA, MODULATED_NONE };

struct modulated_rms_norm_forward_problem {
    liger_dtype dtype, weight_dtype, scale_dtype, shift_dtype;
    int32_t casting;
    int64_t rows, cols, group_rows; /* rows of a group */
    liger_rows x, y;
    const void *weight, *shift; /* or NULL */
    const void *scale;
    float *rstd;           /* or NULL */
    float epsilon, offset; /* already rounded to dtype where casting asks for it */
};

struct modulated_rms_norm_backward_problem {
    liger_dtype dtype, weight_dtype, scale_dtype, shift_dtype;
    int32_t casting;
    int64_t rows, cols;
    struct norm_groups plan;
    liger_rows dy, x, dx; /* dx.data may be NULL */
    const void *weight;   /* or NULL */
    const void *scale;
    const float *rstd;
    void *dweight, *dscale, *dshift; /* or NULL */
    float offset;
    float *workspace; /* [modulated_rms_norm_rows(), plan.units, cols]; NULL without gradients of parameters */
};

/* On the CPU the products that are rounded before they meet scale are summed beside those that are not; a GPU sums them in a
 * second pass over the same memory. */
static inline int64_t modulated_rms_norm_rows(int32_t multiprocessors, int32_t casting) {
    return multiprocessors == 0 && casting == MODULATED_GEMMA ? 4 : 3;
}

#endif
