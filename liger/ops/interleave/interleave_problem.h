/* interleave_problem.h - a matrix of rows x cols blocks, stored row by row, is stored column by column, in its own memory. An
 * internal slot: what belongs together for one product, which then writes over what others have used.
 *
 * The permutation is made of cycles. Who moves one needs to keep a single block, or a piece of it. */
#ifndef LIGER_OPS_INTERLEAVE_INTERLEAVE_PROBLEM_H
#define LIGER_OPS_INTERLEAVE_INTERLEAVE_PROBLEM_H

#include <stdint.h>

#include "liger/core/rows.h"

struct interleave_problem {
    liger_dtype dtype;
    void *data; /* [rows, cols, block], contiguous; afterwards [cols, rows, block] */
    int64_t rows, cols, block;
};

/* Which block comes to a place. */
LIGER_HOST_DEVICE static inline int64_t interleave_source(int64_t rows, int64_t cols, int64_t place) {
    return place % rows * cols + place / rows;
}

#endif
