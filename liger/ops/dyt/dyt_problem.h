/* dyt_problem.h - what a backend sees of dynamic tanh: flat, checked, no views. */
#ifndef LIGER_OPS_DYT_PROBLEM_H
#define LIGER_OPS_DYT_PROBLEM_H

#include "liger/core/norm_partials.h"
#include "liger/core/rows.h"

struct dyt_forward_problem {
    liger_dtype dtype, alpha_dtype, weight_dtype; /* weight_dtype: of gamma and beta */
    int64_t rows, cols;                           /* both 1 or more */
    liger_rows x, y;
    const void *alpha, *gamma, *beta; /* beta or NULL */
};

struct dyt_backward_problem {
    liger_dtype dtype, alpha_dtype, weight_dtype; /* weight_dtype: of gamma, dgamma and dbeta */
    int64_t rows, cols;                           /* rows may be 0: the parameters' gradients are zero then */
    liger_rows dy, x, dx;                         /* dx.data may be NULL */
    const void *alpha, *gamma;
    void *dalpha, *dgamma, *dbeta; /* each or NULL */
    int64_t partials;              /* dyt_partials(), 1 or more */
    float *workspace;              /* [2, partials, cols] of dgamma and dbeta, then dyt_totals(); NULL without any */
};

/* A GPU's blocks have 256 threads and are three of a multiprocessor; a thread has one pack of 16 bytes of a row, or one value
 * where that is not aligned. */
enum { DYT_THREADS = 256, DYT_BLOCKS = 3, DYT_ROWS = 8 /* for a partial row, at least */ };

/* Partial rows of dgamma and dbeta. */
static inline int64_t dyt_partials(int32_t multiprocessors, int64_t rows, int64_t row_bytes) {
    const int64_t across = (row_bytes + DYT_THREADS * 16 - 1) / (DYT_THREADS * 16);
    const int64_t useful = (rows + DYT_ROWS - 1) / DYT_ROWS, most = (int64_t)multiprocessors * DYT_BLOCKS / across;
    const int64_t partials = multiprocessors == 0 ? norm_partials(0, rows, row_bytes) : useful < most ? useful : most;
    return partials < 1 ? 1 : partials;
}
/* Partial sums of dalpha, at most: one for each block. */
static inline int64_t dyt_totals(int64_t partials, int64_t cols) {
    return partials * ((cols + DYT_THREADS - 1) / DYT_THREADS);
}

#endif
