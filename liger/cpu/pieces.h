/* pieces.h - rows cut into pieces, small enough for the threads and large enough to be worth a call: for kernels that compute
 * element by element. */
#ifndef LIGER_CPU_PIECES_H
#define LIGER_CPU_PIECES_H

#include "liger/cpu/simd.h"

/* Elements of one piece: 32 KiB or more per tensor, below which a second thread costs more than it brings. */
enum { PIECE = 16384 };

/* Calls body(row, first column, count) for each piece of a chunk. */
#define FOR_EACH_PIECE(p, begin, end, ...)                                                                             \
    for (int64_t piece = (begin); piece < (end); piece++) {                                                            \
        const int64_t pieces_per_row = ((p)->cols + PIECE - 1) / PIECE;                                                \
        const int64_t row = piece / pieces_per_row, first = piece % pieces_per_row * PIECE;                            \
        const int64_t count = (p)->cols - first < PIECE ? (p)->cols - first : PIECE;                                   \
        __VA_ARGS__;                                                                                                   \
    }

LIGER_TEMPLATE int64_t pieces(int64_t rows, int64_t cols) { return rows * ((cols + PIECE - 1) / PIECE); }
/* Short rows are pieces of their own: take several at a time. */
LIGER_TEMPLATE int64_t grain(int64_t cols) { return cols < PIECE ? 1 + PIECE / cols : 1; }

static void *at(liger_rows rows, int64_t row, int64_t col, liger_dtype t) {
    const size_t element = f_size(t);
    return rows.data ? (char *)row_of(rows, row, element) + col * (int64_t)element : NULL;
}

/* Tensors of a call that are larger together than the caches of today are gone from them when the call is over: their
 * outputs are then written past the caches, which saves reading them first (1.4 ms of 5 at 2048 x 2816 in f32). */
enum { STREAM_BYTES = 64 << 20 };

static bool streams(liger_dtype t, int64_t rows, int64_t cols, int64_t tensors) {
    return tensors * rows * cols * (int64_t)liger_dtype_size(t) > STREAM_BYTES;
}
static bool aligned(const void *p) { return (uintptr_t)p % 64 == 0; }

LIGER_TEMPLATE void put(liger_dtype t, bool stream, void *p, int64_t i, int n, const v_f32 x[2]) {
    if (stream) v_stream_two(t, p, i, n, x);
    else v_store_two(t, p, i, n, x);
}

#endif
