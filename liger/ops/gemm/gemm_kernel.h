/* gemm_kernel.h - what a kernel of the packed matrix product consists of.
 *
 * The two factors are seen alike, as `lines` (rows of op(a), columns of op(b)) along k. Packing turns lines of any
 * stride and dtype into panels of a fixed number of lines, in the order in which the innermost loop reads them, and
 * fills up the last panel and the last step of k with zeros, so that this loop knows no edges. */
#ifndef LIGER_OPS_GEMM_KERNEL_H
#define LIGER_OPS_GEMM_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "liger/core/tensor.h"

struct gemm_factor {
    const void *data;
    int64_t stride; /* elements from line to line if along, else from k to k + 1 */
    liger_dtype dtype;
    bool along; /* the elements of a line are neighbours in memory; else the lines are */
};

struct gemm_span {
    int64_t begin, size;
};

/* Memory that a call of multiply asks for while it computes: `count` lines of the cache, in runs of `run` lines that
 * start `stride` bytes apart. */
struct gemm_ahead {
    const char *at;
    int64_t left; /* lines to the end of this run; 1 or more */
    int64_t count, run, stride;
};

struct packed_kernel {
    int64_t tile_rows, tile_cols; /* what one call of multiply computes; the widths of the panels of a and b */
    int64_t step;                 /* packed k is a multiple of it */
    int64_t packed_size;          /* bytes of a packed element */
    int64_t slab;                 /* how much of k is packed at a time; does not change a bit of the result */
    void (*pack_a)(const struct gemm_factor *a, struct gemm_span rows, struct gemm_span k, void *packed);
    void (*pack_b)(const struct gemm_factor *b, struct gemm_span cols, struct gemm_span k, void *packed);
    /* tile[tile_rows][tile_cols] = (add ? tile : 0) + one panel of a times one panel of b, of which `rows` rows are
     * wanted; the others may be left as they are. k counts packed elements. */
    void (*multiply)(int64_t k, const void *a, const void *b, float *tile, bool add, int64_t rows,
                     struct gemm_ahead ahead);
    void (*begin)(void); /* on a thread, before and after its calls of multiply; or NULL */
    void (*end)(void);
};

static inline int64_t gemm_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t gemm_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t gemm_round_up(int64_t a, int64_t multiple) { return gemm_ceil_div(a, multiple) * multiple; }

/* Passes over lines. */
static inline void gemm_skip(struct gemm_ahead *ahead, int64_t lines) {
    const int64_t done = ahead->run - ahead->left + lines, runs = done / ahead->run;
    ahead->at += lines * 64 + runs * (ahead->stride - ahead->run * 64);
    ahead->left = ahead->run - (done - runs * ahead->run);
    ahead->count -= lines;
}

/* Asks for up to `lines` of what is left. A few between the multiplications of a few steps cost nothing; many at once
 * fill the queue of the L1 and stop everything. */
static inline void gemm_prefetch(struct gemm_ahead *ahead, int64_t lines) {
    for (int64_t i = gemm_min(lines, ahead->count); i > 0; i--) {
        __builtin_prefetch(ahead->at, 0, 2);
        ahead->count--;
        ahead->at += 64;
        if (--ahead->left > 0) continue;
        ahead->at += ahead->stride - ahead->run * 64;
        ahead->left = ahead->run;
    }
}

#endif
