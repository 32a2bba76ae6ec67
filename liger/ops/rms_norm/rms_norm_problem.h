/* rms_norm_problem.h - what a backend sees of RMSNorm: flat, checked, no views.
 *
 * add_rms_norm is the same problem with `residual` (forward) or `dsum` (backward) present: it has no kernels of its own. */
#ifndef LIGER_OPS_RMS_NORM_PROBLEM_H
#define LIGER_OPS_RMS_NORM_PROBLEM_H

#include <stdbool.h>
#include <stddef.h>

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
    int64_t partials; /* rms_norm_partials() */
    float *workspace; /* [partials, cols]; NULL without dweight */
};

/* Rows of partial dweight sums: fixed by the shape and the device, never by the number of threads. A GPU has one per block,
 * and as many blocks as its multiprocessors hold: a block has a thread for every 16 bytes of a row (512 where several rows
 * share it), a multiprocessor room for 1024 of them. */
enum { RMS_NORM_CPU_PARTIALS = 64, RMS_NORM_CPU_ROWS = 32, RMS_NORM_MOST_BLOCKS = 8 };

static inline int64_t rms_norm_partials(int32_t multiprocessors, int64_t rows, int64_t row_bytes) {
    const int64_t fits = row_bytes > 512 ? 16384 / row_bytes : 2;
    const int64_t blocks = fits < 1 ? 1 : fits > RMS_NORM_MOST_BLOCKS ? (int64_t)RMS_NORM_MOST_BLOCKS : fits;
    const int64_t most = multiprocessors ? multiprocessors * blocks : (int64_t)RMS_NORM_CPU_PARTIALS;
    const int64_t useful = multiprocessors ? rows : (rows + RMS_NORM_CPU_ROWS - 1) / RMS_NORM_CPU_ROWS;
    return useful < most ? useful : most;
}

#endif
