/* norm_partials.h - how many partial rows the parameters' gradients of a norm are summed in. Internal.
 *
 * Fixed by the shape and the device, never by the number of threads, and asked for by the caller as workspace. A GPU has one
 * for each block of its backward kernel (liger/cuda/row_norm_backward.cuh), and about as many blocks as its
 * multiprocessors hold: a thread has 16 bytes of a narrow row, of which a block has several, and twice that or more of
 * a wider one, with twice the registers. */
#ifndef LIGER_CORE_NORM_PARTIALS_H
#define LIGER_CORE_NORM_PARTIALS_H

#include <stdint.h>

enum {
    NORM_CPU_PARTIALS = 64,
    NORM_CPU_ROWS = 32,                 /* for each of them, at least */
    NORM_MULTIPROCESSOR_THREADS = 1024, /* of 64 registers each; half as many have 128 */
    NORM_SHARED_BLOCK = 512,            /* threads of a block that several rows share: those of at most 512 bytes */
    NORM_MOST_BLOCKS = 8,               /* of a multiprocessor */
    NORM_TOTALS_OF_A_PARTIAL = 16       /* rows that a block has at once, at most: each has its sums over everything */
};

/* multiprocessors: 0 on the CPU. */
static inline int64_t norm_partials(int32_t multiprocessors, int64_t rows, int64_t row_bytes) {
    if (multiprocessors == 0) {
        const int64_t useful = (rows + NORM_CPU_ROWS - 1) / NORM_CPU_ROWS;
        return useful < NORM_CPU_PARTIALS ? useful : (int64_t)NORM_CPU_PARTIALS;
    }
    const int64_t fits = row_bytes > 512 ? NORM_MULTIPROCESSOR_THREADS * (int64_t)16 / row_bytes
                                         : NORM_MULTIPROCESSOR_THREADS / NORM_SHARED_BLOCK;
    const int64_t most = multiprocessors * (fits < 1 ? 1 : fits > NORM_MOST_BLOCKS ? (int64_t)NORM_MOST_BLOCKS : fits);
    return rows < most ? rows : most;
}

#endif
