/* rms_norm_problem.h - what a backend sees of RMSNorm: flat, checked, no views.
 *
 * add_rms_norm is the same problem with `residual` (forward) or `dsum` (backward) present: it has no kernels of its own. */
#ifndef LIGER_OPS_RMS_NORM_PROBLEM_H
#define LIGER_OPS_RMS_NORM_PROBLEM_H

#include <stdbool.h>
#include <stddef.h>

#include "liger/core/norm_partials.h"
#include "liger/core/rows.h"

struct rms_norm_forward_problem {
    liger_dtype dtype, weight_dtype;
    int32_t casting; /* liger_casting */
    int64_t rows, cols;
    liger_rows x, y;
    liger_rows residual, sum; /* .data NULL: plain RMSNorm */
    const void *weight;       /* or NULL */
    float *rstd;              /* or NULL */
    float epsilon, offset;    /* already rounded to dtype where casting asks for it */
    const char *function;     /* which of the two was called, for messages */
};

struct rms_norm_backward_problem {
    liger_dtype dtype, weight_dtype;
    int32_t casting;
    int64_t rows, cols;
    liger_rows dy, x, dx; /* dx.data may be NULL */
    liger_rows dsum;      /* .data NULL: zero */
    const void *weight;   /* or NULL */
    const float *rstd;
    void *dweight; /* or NULL */
    float offset;
    int64_t partials; /* norm_partials() */
    float *workspace; /* [partials, cols]; NULL without dweight */
    const char *function;
};

#endif
