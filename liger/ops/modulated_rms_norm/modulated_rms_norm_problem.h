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
    float *workspace; /* [3, plan.units, cols]; NULL without gradients of parameters */
};

#endif
