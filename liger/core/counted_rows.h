/* counted_rows.h - which rows of a loss count, and what each weighs: what kernels of losses with labels share. Internal.
 *
 * A label says no more than whether its row counts; it is not an index. How many count is known on the device. */
#ifndef LIGER_CORE_COUNTED_ROWS_H
#define LIGER_CORE_COUNTED_ROWS_H

#include "liger/core/rows.h"

struct counted_rows {
    const void *labels; /* of each row, i32 or i64; NULL: every row counts */
    liger_dtype label_dtype;
    int64_t ignore_index;
    const float *valid; /* how many rows of the batch count, in the device's memory; NULL: share is the weight */
    float share;        /* the weight of a row, times *valid */
};

LIGER_HOST_DEVICE static inline bool row_counts(const struct counted_rows *rows, int64_t r) {
    if (rows->labels == NULL) return true;
    const int64_t label = rows->label_dtype == LIGER_I32 ? (int64_t)((const int32_t *)rows->labels)[r]
                                                         : ((const int64_t *)rows->labels)[r];
    return label != rows->ignore_index;
}
/* Of a row that counts. */
LIGER_HOST_DEVICE static inline float row_weight(const struct counted_rows *rows) {
    return rows->valid ? rows->share / *rows->valid : rows->share;
}
/* The rows from `first` on. */
static inline struct counted_rows counted_rows_from(struct counted_rows rows, int64_t first) {
    if (rows.labels) rows.labels = (const char *)rows.labels + first * (int64_t)liger_dtype_size(rows.label_dtype);
    return rows;
}

#endif
