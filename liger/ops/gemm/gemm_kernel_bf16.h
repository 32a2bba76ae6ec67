/* gemm_kernel_bf16.h - the packed kernel over vdpbf16ps (AVX512-BF16): 32 multiply-adds of bf16 into 16 f32 sums.
 *
 * Error: the instruction rounds each of its two additions to nearest even and does not fuse them with the products,
 * which are exact in f32; so a sum over k carries at most k roundings of 2^-24, as an f32 loop without fma does. It
 * reads subnormal inputs as zero and flushes subnormal results, whatever MXCSR says: an absolute error of at most
 * k · 2^-126 · (2 + max|a| + max|b|). */
#ifndef LIGER_OPS_GEMM_KERNEL_BF16_H
#define LIGER_OPS_GEMM_KERNEL_BF16_H

#include "liger/ops/gemm/gemm_pack_bf16.h"

/* A slab as deep as most products of a model keeps their sums in registers. Its panel of b (256 KB) is read from the L2
 * and its panels of a from the L3; neither is slower than from the L1. */
enum { BF16_ROWS = 14, BF16_COLS = 32, BF16_SLAB = 4096, BF16_STEPS = 4 };

static void bf16_pack_a(const struct gemm_factor *a, struct gemm_span rows, struct gemm_span k, void *packed) {
    pack_pairs(BF16_ROWS, 2, a, rows, k, packed);
}
static void bf16_pack_b(const struct gemm_factor *b, struct gemm_span cols, struct gemm_span k, void *packed) {
    pack_pairs(BF16_COLS, 2, b, cols, k, packed);
}

/* 28 sums, two vectors of b and one broadcast pair of a: all but one of the 32 registers. */
LIGER_TEMPLATE void bf16_multiply_rows(int rows, int64_t k, const uint32_t *a, const uint32_t *b, float *tile, bool add,
                                       struct gemm_ahead ahead) {
    __m512 sum[BF16_ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    const int64_t burst = gemm_ceil_div(ahead.count, gemm_ceil_div(k / 2, BF16_STEPS) + (k == 0));
    for (int64_t pairs = k / 2; pairs > 0;) {
        const int64_t later = pairs > BF16_STEPS ? pairs - BF16_STEPS : 0;
        gemm_prefetch(&ahead, burst);
        for (; pairs > later; pairs--, a += BF16_ROWS, b += BF16_COLS) {
            const __m512bh left = (__m512bh)_mm512_loadu_si512(b), right = (__m512bh)_mm512_loadu_si512(b + 16);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                const __m512bh pair = (__m512bh)_mm512_set1_epi32((int)a[i]);
                sum[i][0] = _mm512_dpbf16_ps(sum[i][0], pair, left);
                sum[i][1] = _mm512_dpbf16_ps(sum[i][1], pair, right);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            float *at = tile + i * BF16_COLS + j * 16;
            _mm512_storeu_ps(at, add ? _mm512_add_ps(_mm512_loadu_ps(at), sum[i][j]) : sum[i][j]);
        }
}

/* The last panel of a has any number of rows; a few sizes of the loop waste little of it. */
static void bf16_multiply(int64_t k, const void *a, const void *b, float *tile, bool add, int64_t rows,
                          struct gemm_ahead ahead) {
    if (rows > 10) bf16_multiply_rows(14, k, a, b, tile, add, ahead);
    else if (rows > 7) bf16_multiply_rows(10, k, a, b, tile, add, ahead);
    else if (rows > 4) bf16_multiply_rows(7, k, a, b, tile, add, ahead);
    else if (rows > 2) bf16_multiply_rows(4, k, a, b, tile, add, ahead);
    else bf16_multiply_rows(2, k, a, b, tile, add, ahead);
}

static const struct packed_kernel bf16_kernel = {
    .tile_rows = BF16_ROWS,
    .tile_cols = BF16_COLS,
    .step = 2,
    .packed_size = sizeof(uint16_t),
    .slab = BF16_SLAB,
    .pack_a = bf16_pack_a,
    .pack_b = bf16_pack_b,
    .multiply = bf16_multiply,
};

#endif
