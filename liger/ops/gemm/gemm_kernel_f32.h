/* gemm_kernel_f32.h - the packed kernel in f32, for every instruction set; 16-bit factors are widened while packed.
 *
 * A panel holds, for k = 0, 1, ..., its lines' k-th elements side by side. One step of k loads a row of b's panel as
 * vectors and multiplies it with one broadcast element per line of a. The tile is as large as the registers allow: 28
 * accumulators of 32 registers on AVX-512, 24 on NEON, 12 and 8 of 16 on AVX2 and SSE2. */
#ifndef LIGER_OPS_GEMM_KERNEL_F32_H
#define LIGER_OPS_GEMM_KERNEL_F32_H

#include "liger/cpu/isa.h"
#include "liger/cpu/simd.h"
#include "liger/ops/gemm/gemm_kernel.h"

#if defined(__AVX512F__)
enum { F32_ROWS = 14, F32_VECTORS = 2 };
#elif defined(__AVX2__)
enum { F32_ROWS = 6, F32_VECTORS = 2 };
#elif defined(__aarch64__)
enum { F32_ROWS = 8, F32_VECTORS = 3 };
#else
enum { F32_ROWS = 4, F32_VECTORS = 2 };
#endif
enum { F32_COLS = F32_VECTORS * V_LANES, F32_SLAB = 256, F32_STEPS = 4 };

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* `size` neighbours to f32, then zeros up to `padded`. */
LIGER_TEMPLATE void f32_widen(liger_dtype t, const void *data, int64_t begin, int64_t size, int64_t padded,
                              float *out) {
    int64_t i = 0;
    for (; i + V_LANES <= size; i += V_LANES) v_store_f32(out + i, v_load(t, data, begin + i));
    for (; i < size; i++) out[i] = f32_load(t, data, begin + i);
    for (; i < padded; i++) out[i] = 0.0f;
}

/* Lines that are neighbours: a row of memory is one k of all panels. */
LIGER_TEMPLATE void f32_pack_across(liger_dtype t, int width, const struct gemm_factor *x, struct gemm_span lines,
                                    struct gemm_span k, float *packed) {
    enum { CHUNK = 1024 };
    float row[CHUNK + 64];
    const int64_t chunk = CHUNK / width * width;
    for (int64_t l = 0; l < lines.size; l += chunk) {
        const int64_t size = gemm_min(chunk, lines.size - l), padded = gemm_round_up(size, width);
        for (int64_t p = 0; p < k.size; p++) {
            f32_widen(t, x->data, (k.begin + p) * x->stride + lines.begin + l, size, padded, row);
            for (int64_t i = 0; i < padded; i += width)
                memcpy(packed + (l + i) * k.size + p * width, row + i, sizeof(float) * (size_t)width);
        }
    }
}

/* Lines along k: V_LANES of k of one panel at a time, transposed through a buffer. */
LIGER_TEMPLATE void f32_pack_along(liger_dtype t, int width, const struct gemm_factor *x, struct gemm_span lines,
                                   struct gemm_span k, float *packed) {
    float block[64][V_LANES];
    for (int64_t l = 0; l < lines.size; l += width) {
        float *panel = packed + l * k.size;
        for (int64_t p = 0; p < k.size; p += V_LANES) {
            const int64_t size = gemm_min(V_LANES, k.size - p);
            for (int i = 0; i < width; i++)
                f32_widen(t, x->data, (lines.begin + l + i) * x->stride + k.begin + p, l + i < lines.size ? size : 0,
                          V_LANES, block[i]);
            for (int64_t q = 0; q < size; q++)
                for (int i = 0; i < width; i++) panel[(p + q) * width + i] = block[i][q];
        }
    }
}

LIGER_TEMPLATE void f32_pack(int width, const struct gemm_factor *x, struct gemm_span lines, struct gemm_span k,
                             float *packed) {
    if (x->along) LIGER_FOR_FLOAT(x->dtype, f32_pack_along(LIGER_T, width, x, lines, k, packed))
    else LIGER_FOR_FLOAT(x->dtype, f32_pack_across(LIGER_T, width, x, lines, k, packed))
}
static void f32_pack_a(const struct gemm_factor *a, struct gemm_span rows, struct gemm_span k, void *packed) {
    f32_pack(F32_ROWS, a, rows, k, packed);
}
static void f32_pack_b(const struct gemm_factor *b, struct gemm_span cols, struct gemm_span k, void *packed) {
    f32_pack(F32_COLS, b, cols, k, packed);
}

/* ---- the innermost loop ----------------------------------------------------------------------------------------- */

/* A slab is summed by itself and then added to the tile: a sum over 32000 is 256 additions and 125 more, and its rounding
 * errors a tenth of those of one long chain. */
LIGER_TEMPLATE void f32_multiply_rows(int rows, int64_t k, const float *a, const float *b, float *tile, bool add,
                                      struct gemm_ahead ahead) {
    v_f32 sum[F32_ROWS][F32_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < F32_VECTORS; j++) sum[i][j] = v_zero();
    const int64_t burst = gemm_ceil_div(ahead.count, gemm_ceil_div(k, F32_STEPS) + (k == 0));
    while (k > 0) {
        const int64_t later = k > F32_STEPS ? k - F32_STEPS : 0;
        gemm_prefetch(&ahead, burst);
        for (; k > later; k--, a += F32_ROWS, b += F32_COLS) {
            v_f32 column[F32_VECTORS];
#pragma GCC unroll 4
            for (int j = 0; j < F32_VECTORS; j++) column[j] = v_load_f32(b + j * V_LANES);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                const v_f32 row = v_set(a[i]);
#pragma GCC unroll 4
                for (int j = 0; j < F32_VECTORS; j++) sum[i][j] = v_fma(row, column[j], sum[i][j]);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < F32_VECTORS; j++) {
            float *at = tile + i * F32_COLS + j * V_LANES;
            v_store_f32(at, add ? v_add(v_load_f32(at), sum[i][j]) : sum[i][j]);
        }
}

static void f32_multiply(int64_t k, const void *a, const void *b, float *tile, bool add, int64_t rows,
                         struct gemm_ahead ahead) {
    if (rows * 2 > F32_ROWS) f32_multiply_rows(F32_ROWS, k, a, b, tile, add, ahead);
    else if (rows > 2) f32_multiply_rows(F32_ROWS / 2, k, a, b, tile, add, ahead);
    else f32_multiply_rows(2, k, a, b, tile, add, ahead);
}

static const struct packed_kernel f32_kernel = {
    .tile_rows = F32_ROWS,
    .tile_cols = F32_COLS,
    .step = 1,
    .packed_size = sizeof(float),
    .slab = F32_SLAB,
    .pack_a = f32_pack_a,
    .pack_b = f32_pack_b,
    .multiply = f32_multiply,
};

#endif
