/* rows.h - a checked view lowered to rows of contiguous columns: what kernels of row-wise operators take. Internal.
 *
 * The leading dimensions of a tensor fold into at most two levels, because h[:, :-1] of a [batch, seq, hidden] tensor
 * has two row strides. A row starts at data + liger_row_offset(rows, r). */
#ifndef LIGER_CORE_ROWS_H
#define LIGER_CORE_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include "liger/core/tensor.h"

#if defined(__CUDACC__)
#define LIGER_HOST_DEVICE __host__ __device__
#else
#define LIGER_HOST_DEVICE
#endif

typedef struct liger_rows {
    void *data;
    int64_t inner; /* rows per outer step; == number of rows when one stride is enough */
    int64_t outer_stride;
    int64_t inner_stride;
    uint64_t inverse; /* ceil(2^64 / inner), or 0 when one stride is enough */
} liger_rows;

/* More than 2^32 rows of one stride are folded as two levels, with this many rows in the inner one: a power of two, by which
 * the multiplication below divides any row number exactly. */
#define LIGER_ROWS_OF_HUGE ((int64_t)1 << 31)

/* Offset of row r in elements. r / inner is a multiplication: a division per row would cost GPU kernels registers. It is
 * exact because r and inner are below 2^32, or inner is a power of two. */
LIGER_HOST_DEVICE static inline int64_t liger_row_offset(liger_rows rows, int64_t r) {
    if ((rows.inverse | (uint64_t)rows.inner_stride >> 31) == 0) /* the usual case, r below 2^32: one instruction */
        return (int64_t)((uint64_t)(uint32_t)r * (uint32_t)rows.inner_stride);
#if defined(__CUDA_ARCH__)
    const int64_t outer = (int64_t)__umul64hi(rows.inverse, (uint64_t)r);
#else
    __extension__ typedef unsigned __int128 wide;
    const int64_t outer = (int64_t)(((wide)rows.inverse * (wide)(uint64_t)r) >> 64);
#endif
    return outer * rows.outer_stride + (r - outer * rows.inner) * rows.inner_stride;
}

#ifdef __cplusplus
extern "C" {
#endif

/* The number of rows and columns: product of all dimensions but the last, and the last. A 0-d tensor is 1 x 1. */
static inline int64_t liger_tensor_rows(const liger_tensor *tensor) {
    int64_t rows = 1;
    for (int d = 0; d + 1 < tensor->ndim; d++) rows *= tensor->shape[d];
    return rows;
}
static inline int64_t liger_tensor_cols(const liger_tensor *tensor) {
    return tensor->ndim ? tensor->shape[tensor->ndim - 1] : 1;
}
static inline int64_t liger_tensor_elements(const liger_tensor *tensor) {
    int64_t elements = 1;
    for (int d = 0; d < tensor->ndim; d++) elements *= tensor->shape[d];
    return elements;
}
static inline bool liger_same_shape(const liger_tensor *a, const liger_tensor *b) {
    if (a->ndim != b->ndim) return false;
    for (int d = 0; d < a->ndim; d++)
        if (a->shape[d] != b->shape[d]) return false;
    return true;
}

/* Folds the leading dimensions. LAYOUT, naming `what`, if the last dimension is not contiguous or the leading ones need
 * more than two strides. */
liger_status liger_fold_rows(const liger_tensor *tensor, const char *what, liger_rows *rows);

/* If none of the views, all of [rows, cols] or absent, has gaps, they become one long row: elementwise kernels then need no
 * row arithmetic, and narrow rows no tails. */
void liger_join_rows(int64_t *rows, int64_t *cols, liger_rows *const *views, int count);

#ifdef __cplusplus
}
#endif
#endif
