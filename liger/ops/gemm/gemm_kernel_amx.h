/* gemm_kernel_amx.h - the packed kernel over AMX tiles (AMX-BF16): 2 x 2 tiles of 16 x 16 f32 sums.
 *
 * A step of k is 32 deep: two tiles of a (16 rows of 32 elements) times two tiles of b (16 pairs of k, 16 columns).
 * tdpbf16ps reads subnormals as zero and flushes subnormal results; its sums round as those of vdpbf16ps do. a is
 * packed although its rows could be read in place: rows a power of two apart share one set of the L1, which costs half
 * of the speed. Tile registers are configured per block of work and released before foreign code runs. */
#ifndef LIGER_OPS_GEMM_KERNEL_AMX_H
#define LIGER_OPS_GEMM_KERNEL_AMX_H

#include "liger/cpu/amx_tiles.h"
#include "liger/ops/gemm/gemm_pack_bf16.h"

enum { AMX_ROWS = 32, AMX_COLS = 32, AMX_STEP = 32, AMX_SLAB = 1024, AMX_AHEAD = 8192 };

static void amx_pack_a(const struct gemm_factor *a, struct gemm_span rows, struct gemm_span k, void *packed) {
    pack_lines(AMX_ROWS, a, rows, k, packed);
}
static void amx_pack_b(const struct gemm_factor *b, struct gemm_span cols, struct gemm_span k, void *packed) {
    pack_pairs(AMX_COLS, AMX_STEP, b, cols, k, packed);
}

LIGER_TEMPLATE void prefetch_step(const char *step) {
#pragma GCC unroll 32
    for (int line = 0; line < AMX_ROWS; line++) _mm_prefetch(step + 64 * line, _MM_HINT_T0);
}

/* tmm0-3: sums; tmm4, 5: a; tmm6, 7: b. A row of a tile of b is half a row of the panel, hence its stride. */
static void amx_multiply(int64_t k, const void *a, const void *b, float *tile, bool add, int64_t rows,
                         struct gemm_ahead ahead) {
    enum { TILE = 16 * 64, B_STRIDE = 2 * AMX_COLS * 2, C_STRIDE = AMX_COLS * 4, STEP_BYTES = 2 * TILE };
    const char *left = a, *right = b;
    const int64_t burst = gemm_ceil_div(ahead.count, k / AMX_STEP + (k == 0));
    (void)rows;
    /* To the compiler the intrinsics neither read nor write memory. */
    __asm__ volatile("" ::: "memory");
    if (add) {
        _tile_loadd(0, tile, C_STRIDE);
        _tile_loadd(1, tile + 16, C_STRIDE);
        _tile_loadd(2, tile + 16 * AMX_COLS, C_STRIDE);
        _tile_loadd(3, tile + 16 * AMX_COLS + 16, C_STRIDE);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (; k > 0; k -= AMX_STEP, left += STEP_BYTES, right += STEP_BYTES) {
        _tile_loadd(4, left, 64);
        _tile_loadd(6, right, B_STRIDE);
        _tile_dpbf16ps(0, 4, 6);
        gemm_prefetch(&ahead, burst);
        _tile_loadd(7, right + 64, B_STRIDE);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        prefetch_step(left + AMX_AHEAD);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, tile, C_STRIDE);
    _tile_stored(1, tile + 16, C_STRIDE);
    _tile_stored(2, tile + 16 * AMX_COLS, C_STRIDE);
    _tile_stored(3, tile + 16 * AMX_COLS + 16, C_STRIDE);
    __asm__ volatile("" ::: "memory");
}

static const struct packed_kernel bf16_kernel = {
    .tile_rows = AMX_ROWS,
    .tile_cols = AMX_COLS,
    .step = AMX_STEP,
    .packed_size = sizeof(uint16_t),
    .slab = AMX_SLAB,
    .pack_a = amx_pack_a,
    .pack_b = amx_pack_b,
    .multiply = amx_multiply,
    .begin = amx_begin,
    .end = amx_end,
};

#endif
