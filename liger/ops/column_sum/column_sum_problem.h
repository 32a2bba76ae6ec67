/* column_sum_problem.h - sum[c] (+)= Σ_r x[r, c], in f32 and in a fixed order: bias gradients. */
#ifndef LIGER_OPS_COLUMN_SUM_PROBLEM_H
#define LIGER_OPS_COLUMN_SUM_PROBLEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "liger/core/tensor.h"

struct column_sum_problem {
    liger_dtype dtype;
    const void *x; /* [rows, cols], last dimension contiguous */
    int64_t rows, cols, stride;
    float *sum; /* [cols] */
    bool accumulate;
    float *workspace; /* column_sum_workspace(rows, cols) bytes */
    size_t workspace_bytes;
};

/* Partial sums over fixed blocks of rows: the order of the sum depends on the shape only. */
enum { COLUMN_SUM_MAX_BLOCKS = 64, COLUMN_SUM_MIN_ROWS = 64 };
static inline int64_t column_sum_blocks(int64_t rows) {
    const int64_t blocks = (rows + COLUMN_SUM_MIN_ROWS - 1) / COLUMN_SUM_MIN_ROWS;
    return blocks < COLUMN_SUM_MAX_BLOCKS ? blocks : (int64_t)COLUMN_SUM_MAX_BLOCKS;
}
static inline size_t column_sum_workspace(int64_t rows, int64_t cols) {
    return (size_t)column_sum_blocks(rows) * (size_t)cols * sizeof(float);
}

#endif
