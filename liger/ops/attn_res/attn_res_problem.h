/* attn_res_problem.h - what a backend sees: flat, checked, no views. Row r of block n is row n · rows + r of v. */
#ifndef LIGER_OPS_ATTN_RES_PROBLEM_H
#define LIGER_OPS_ATTN_RES_PROBLEM_H

#include "liger/core/rows.h"

struct attn_res_forward_problem {
    liger_dtype dtype, query_dtype, norm_dtype;
    int64_t blocks, rows, cols; /* all 1 or more */
    liger_rows v, h;
    const void *query, *norm;
    float *alpha, *rstd; /* [blocks, rows] */
    float epsilon;
    int32_t normal_dtype; /* what x̂ is rounded to */
};

struct attn_res_backward_problem {
    liger_dtype dtype, query_dtype, norm_dtype;
    int64_t blocks, rows, cols;
    liger_rows dh, v, dv; /* dv.data may be NULL */
    const void *query, *norm;
    const float *alpha, *rstd;
    void *dquery, *dnorm; /* or NULL */
    int32_t normal_dtype;
    int64_t units;    /* attn_res_units() */
    float *workspace; /* [2, blocks, rows]: ⟨dh, v⟩ and mean(u·x̂); at attn_res_sums() [units, cols]: Σ ds·x̂ */
};

/* Where the sums begin, in floats: on a multiple of what a pack of 16 bytes is as floats. */
LIGER_HOST_DEVICE static inline int64_t attn_res_sums(int64_t blocks, int64_t rows) {
    return (2 * blocks * rows + 7) / 8 * 8;
}

/* Who add up rows: chunks on the CPU, on a GPU blocks, few enough that what they have read once is still in L2 when they read
 * it again. */
enum { ATTN_RES_CPU_UNITS = 64, ATTN_RES_CPU_ROWS = 8, ATTN_RES_BLOCKS = 3 };
static inline int64_t attn_res_units(int32_t multiprocessors, int64_t rows) {
    const int64_t most = multiprocessors ? (int64_t)multiprocessors * ATTN_RES_BLOCKS : (int64_t)ATTN_RES_CPU_UNITS;
    const int64_t useful = multiprocessors ? rows : (rows + ATTN_RES_CPU_ROWS - 1) / ATTN_RES_CPU_ROWS;
    return useful < most ? useful : most;
}

#endif
