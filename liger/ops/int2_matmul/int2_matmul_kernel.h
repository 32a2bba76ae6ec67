/* int2_matmul_kernel.h - the innermost loop: a tile of sums += a panel of a times a panel of codes, per instruction set.
 *
 * A step is 64 of k, as 16 lanes of four: a's panel has its rows' 64 bytes of a step one below the other, the panel of codes
 * has a row of columns for each lane. Codes are weights + 1, 0 to 3: as unsigned bytes they are what the instructions take,
 *
 *   AMX         tdpbsud: 16 x 16 sums over a step at once
 *   VNNI        vpdpbusd: 16 sums of four products
 *   AVX2, 512   vpmaddubsw: pairs of products in 16 bits. A pair is 768 at most, so that 42 of them may be added up there
 *               before they are widened: two steps have 32.
 *   else        plain C */
#ifndef LIGER_OPS_INT2_MATMUL_KERNEL_H
#define LIGER_OPS_INT2_MATMUL_KERNEL_H

#include <stdint.h>
#include <string.h>

#include "liger/cpu/isa.h"

enum { INT2_LANES = 16, INT2_STEP_K = 4 * INT2_LANES };

#if defined(__AMX_INT8__)
#include "liger/cpu/amx_tiles.h"

enum { INT2_ROWS = 32, INT2_COLS = 32 };

static void int2_begin(void) { amx_begin(); }
static void int2_end(void) { amx_end(); }

/* tmm0-3: sums; tmm4, 5: a; tmm6, 7: codes. */
static void int2_multiply(int64_t steps, const int8_t *a, const uint32_t *codes, int32_t *tile) {
    enum { HALF = INT2_COLS / 2, PITCH = INT2_COLS * 4 };
    /* To the compiler the intrinsics neither read nor write memory. */
    __asm__ volatile("" ::: "memory");
    _tile_loadd(0, tile, PITCH);
    _tile_loadd(1, tile + HALF, PITCH);
    _tile_loadd(2, tile + 16 * INT2_COLS, PITCH);
    _tile_loadd(3, tile + 16 * INT2_COLS + HALF, PITCH);
    for (int64_t s = 0; s < steps; s++, a += INT2_ROWS * INT2_STEP_K, codes += INT2_LANES * INT2_COLS) {
        _tile_loadd(4, a, INT2_STEP_K);
        _tile_loadd(6, codes, PITCH);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(7, codes + HALF, PITCH);
        _tile_dpbsud(1, 4, 7);
        _tile_loadd(5, a + 16 * INT2_STEP_K, INT2_STEP_K);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(0, tile, PITCH);
    _tile_stored(1, tile + HALF, PITCH);
    _tile_stored(2, tile + 16 * INT2_COLS, PITCH);
    _tile_stored(3, tile + 16 * INT2_COLS + HALF, PITCH);
    __asm__ volatile("" ::: "memory");
}

#else

static void int2_begin(void) {}
static void int2_end(void) {}

#if defined(__AVX512BW__)
#include <immintrin.h>

enum { INT2_VECTOR = 16 };
typedef __m512i int2_vector;
#define INT2_OP(name) _mm512_##name
LIGER_TEMPLATE int2_vector int2_load(const void *p) { return _mm512_loadu_si512(p); }
LIGER_TEMPLATE void int2_store(void *p, int2_vector x) { _mm512_storeu_si512(p, x); }
LIGER_TEMPLATE int2_vector int2_zero(void) { return _mm512_setzero_si512(); }

#elif defined(__AVX2__)
#include <immintrin.h>

enum { INT2_VECTOR = 8 };
typedef __m256i int2_vector;
#define INT2_OP(name) _mm256_##name
LIGER_TEMPLATE int2_vector int2_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
LIGER_TEMPLATE void int2_store(void *p, int2_vector x) { _mm256_storeu_si256((__m256i *)p, x); }
LIGER_TEMPLATE int2_vector int2_zero(void) { return _mm256_setzero_si256(); }
#endif

#if defined(INT2_OP)

/* INT2_DEPTH steps: a multiple of what a slab has, or as many as the narrow sums hold. */
#if defined(__AVX512VNNI__)
enum { INT2_ROWS = 14, INT2_DEPTH = 1 << 30 };
/* As the instruction's function has them: an array of __m512i GCC 12 keeps in memory, and stores every sum in every round. */
typedef int int2_sum __attribute__((vector_size(64)));
LIGER_TEMPLATE int2_sum int2_dot(int2_sum sum, int2_vector codes, int2_vector a) {
    return (int2_sum)_mm512_dpbusd_epi32((int2_vector)sum, codes, a);
}
LIGER_TEMPLATE int2_vector int2_widen(int2_sum sum) { return (int2_vector)sum; }
#else
enum { INT2_ROWS = INT2_VECTOR == 16 ? 12 : 6, INT2_DEPTH = 2 };
typedef int2_vector int2_sum;
LIGER_TEMPLATE int2_sum int2_dot(int2_sum sum, int2_vector codes, int2_vector a) {
    return INT2_OP(add_epi16)(sum, INT2_OP(maddubs_epi16)(codes, a));
}
LIGER_TEMPLATE int2_vector int2_widen(int2_sum sum) { return INT2_OP(madd_epi16)(sum, INT2_OP(set1_epi16)(1)); }
#endif
enum { INT2_VECTORS = 2, INT2_COLS = INT2_VECTORS * INT2_VECTOR };

LIGER_TEMPLATE void int2_add_steps(int64_t steps, const int8_t *a, const uint32_t *codes, int32_t *tile) {
    int2_sum sum[INT2_ROWS][INT2_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < INT2_ROWS; i++) sum[i][0] = sum[i][1] = (int2_sum)int2_zero();
    for (; steps > 0; steps--, a += INT2_ROWS * INT2_STEP_K)
        for (int lane = 0; lane < INT2_LANES; lane++, codes += INT2_COLS) {
            const int2_vector left = int2_load(codes), right = int2_load(codes + INT2_VECTOR);
#pragma GCC unroll 16
            for (int i = 0; i < INT2_ROWS; i++) {
                int32_t four;
                memcpy(&four, a + i * INT2_STEP_K + 4 * lane, sizeof four);
                sum[i][0] = int2_dot(sum[i][0], left, INT2_OP(set1_epi32)(four));
                sum[i][1] = int2_dot(sum[i][1], right, INT2_OP(set1_epi32)(four));
            }
        }
#pragma GCC unroll 16
    for (int i = 0; i < INT2_ROWS; i++)
#pragma GCC unroll 2
        for (int j = 0; j < INT2_VECTORS; j++) {
            int32_t *at = tile + i * INT2_COLS + j * INT2_VECTOR;
            int2_store(at, INT2_OP(add_epi32)(int2_load(at), int2_widen(sum[i][j])));
        }
}

static void int2_multiply(int64_t steps, const int8_t *a, const uint32_t *codes, int32_t *tile) {
    for (int64_t s = 0; s < steps; s += INT2_DEPTH)
        int2_add_steps(steps - s < INT2_DEPTH ? steps - s : INT2_DEPTH, a + s * INT2_ROWS * INT2_STEP_K,
                       codes + s * INT2_LANES * INT2_COLS, tile);
}

#else

enum { INT2_ROWS = 4, INT2_COLS = 16 };

/* Unsigned, because sums may wrap around. */
static void int2_multiply(int64_t steps, const int8_t *a, const uint32_t *codes, int32_t *tile) {
    for (; steps > 0; steps--, a += INT2_ROWS * INT2_STEP_K)
        for (int lane = 0; lane < INT2_LANES; lane++, codes += INT2_COLS)
            for (int i = 0; i < INT2_ROWS; i++) {
                const int8_t *four = a + i * INT2_STEP_K + 4 * lane;
                const uint32_t x0 = (uint32_t)four[0], x1 = (uint32_t)four[1], x2 = (uint32_t)four[2],
                               x3 = (uint32_t)four[3];
                uint32_t *sum = (uint32_t *)tile + i * INT2_COLS;
                for (int j = 0; j < INT2_COLS; j++)
                    sum[j] += x0 * (codes[j] & 3) + x1 * (codes[j] >> 8 & 3) + x2 * (codes[j] >> 16 & 3) +
                              x3 * (codes[j] >> 24);
            }
}

#endif
#endif
#endif
