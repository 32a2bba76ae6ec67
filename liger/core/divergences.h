/* divergences.h - two matrices of one shape compared element by element: what a kernel sees, flat and checked. Internal.
 *
 * A formula makes of x and y of an element a value and a slope, the value's derivative by x. The loss is the sum of the
 * values of all rows that count, divided; or with reduction NONE every value. dx is the slope, divided likewise, times the
 * upstream gradient. Rows that do not count are not read: their values and slopes are 0.
 *
 * The sum is one of fixed parts: tiles of DIVERGENCE_TILE elements, of one row or of whole rows. Their sums are added in
 * order, so that neither the number of threads nor strides change a bit. */
#ifndef LIGER_CORE_DIVERGENCES_H
#define LIGER_CORE_DIVERGENCES_H

#include "liger/core/rows.h"

enum { DIVERGENCE_TILE = 16384 };

struct divergence_tiles {
    int64_t across; /* tiles of a row */
    int64_t rows;   /* rows of a tile */
    int64_t count;  /* of all; 0 without elements */
};

LIGER_HOST_DEVICE static inline struct divergence_tiles divergence_tiles_of(int64_t rows, int64_t cols) {
    struct divergence_tiles tiles = {0, 1, 0};
    if (rows == 0 || cols == 0) return tiles;
    tiles.across = (cols + DIVERGENCE_TILE - 1) / DIVERGENCE_TILE;
    if (cols < DIVERGENCE_TILE) tiles.rows = DIVERGENCE_TILE / cols;
    tiles.count = (rows + tiles.rows - 1) / tiles.rows * tiles.across;
    return tiles;
}

struct divergence_problem {
    liger_dtype dtype, y_dtype, label_dtype, loss_dtype; /* y's is dtype or f32 */
    int32_t reduction;                                   /* liger_reduction */
    int64_t rows, cols;
    struct divergence_tiles tiles;
    liger_rows x, y;
    const void *labels; /* [rows]; or NULL: all rows count */
    int64_t ignore_index;
    /* What values and slopes are multiplied by; and divided by *valid besides, if that is not NULL: how many rows count, in
     * the device's memory. */
    float share;
    const float *valid;
    /* f32; data may be NULL. One for each element if upstream_step is 1, else one for each row, whose stride may be 0. */
    liger_rows upstream;
    int64_t upstream_step;
    float *partials; /* [tiles.count] */
    void *total;     /* the loss, of loss_dtype; or NULL */
    liger_rows loss; /* each value in f32; data may be NULL */
    liger_rows dx;   /* data may be NULL; may be x itself */
};

/* What an element of dx takes more than its slope, but for the upstream. */
LIGER_HOST_DEVICE static inline float divergence_share(const struct divergence_problem *d) {
    if (d->valid == NULL) return d->share;
    return *d->valid > 0.0f ? d->share / *d->valid : 0.0f;
}

/* Do single elements have an upstream or a value of their own? */
LIGER_HOST_DEVICE static inline bool divergence_is_unreduced(const struct divergence_problem *d) {
    return d->loss.data != NULL || d->upstream_step != 0;
}

#endif
