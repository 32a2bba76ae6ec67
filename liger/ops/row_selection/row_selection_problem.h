/* row_selection_problem.h - the rows of a batch that a loss counts, moved together, so that products leave out the others.
 *
 *   select    which rows have a target that is not ignored, in order
 *   gather    y[i] = x[row_of[i]]
 *   scatter   y[r] = x[place_of[r]], rounded to y's dtype; 0 for a row that is not there
 *
 * On a GPU the sizes of products must be known where nothing has been counted yet: there the caller bounds the rows, and the
 * places behind the last one are rows of zeros. */
#ifndef LIGER_OPS_ROW_SELECTION_PROBLEM_H
#define LIGER_OPS_ROW_SELECTION_PROBLEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "liger/core/tensor.h"

struct row_select_problem {
    const void *target; /* [rows], contiguous */
    liger_dtype target_dtype;
    int64_t rows, ignore_index;
    int64_t vocab; /* the CPU refuses a target outside of it, CUDA does not look */
    int64_t most;  /* the caller's bound. The CPU refuses one that is too small; CUDA counts on, and keeps the first */
    int64_t *row_of;   /* [most]: the row at a place, ascending; -1 behind the last */
    int64_t *place_of; /* [rows]: -1 for rows that are ignored, or found no place */
    int64_t *count;    /* one value: the rows that are not ignored, more than `most` if there are more */
    const char *op;    /* the function, for messages */
};

struct row_gather_problem {
    liger_dtype dtype;
    int64_t rows, cols; /* of y */
    const void *x;
    int64_t x_stride;
    const int64_t *row_of; /* [rows]; a row of zeros where it is negative */
    void *y;               /* contiguous */
};

struct row_scatter_problem {
    liger_dtype x_dtype, y_dtype; /* equal, or x is f32 */
    int64_t rows, cols;           /* of y */
    const void *x;
    int64_t x_stride;
    const int64_t *place_of; /* [rows]; NULL: x has the same rows */
    void *y;
    int64_t y_stride;
};

/* What is gathered is scattered from where its rows are numbered: one kernel. */
static inline struct row_scatter_problem row_gather_as_scatter(const struct row_gather_problem *gather) {
    struct row_scatter_problem scatter;
    scatter.x_dtype = scatter.y_dtype = gather->dtype;
    scatter.rows = gather->rows;
    scatter.cols = scatter.y_stride = gather->cols;
    scatter.x = gather->x;
    scatter.x_stride = gather->x_stride;
    scatter.place_of = gather->row_of;
    scatter.y = gather->y;
    return scatter;
}

#endif
