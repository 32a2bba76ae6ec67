/* gemm_pack_bf16.h - bf16 factors into the panels that dot-product instructions read. AVX-512.
 *
 * Such an instruction multiplies pairs of k: one 32-bit lane holds k and k + 1 of one line. Everything here works on
 * blocks of 16 lines and 32 of k, that is 16 x 16 pairs in 16 registers, either a line per register or a pair of k per
 * register; a transpose leads from one to the other. What is missing at an edge is read as zero and never touched. */
#ifndef LIGER_OPS_GEMM_PACK_BF16_H
#define LIGER_OPS_GEMM_PACK_BF16_H

#include <immintrin.h>

#include "liger/cpu/isa.h"
#include "liger/ops/gemm/gemm_kernel.h"

enum { BLOCK_LINES = 16, BLOCK_K = 32, BLOCK_PAIRS = BLOCK_K / 2 };

/* r[i] lane j <-> r[j] lane i */
LIGER_TEMPLATE void transpose_16x16(__m512i r[16]) {
    __m512i two[16], four[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        two[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        two[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        four[i] = _mm512_unpacklo_epi64(two[i], two[i + 2]);
        four[i + 1] = _mm512_unpackhi_epi64(two[i], two[i + 2]);
        four[i + 2] = _mm512_unpacklo_epi64(two[i + 1], two[i + 3]);
        four[i + 3] = _mm512_unpackhi_epi64(two[i + 1], two[i + 3]);
    }
    /* Quarter q of four[4 i + c] holds rows 4 i .. 4 i + 3 of column 4 q + c. */
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        const __m512i even_low = _mm512_shuffle_i32x4(four[c], four[4 + c], 0x88);
        const __m512i even_high = _mm512_shuffle_i32x4(four[8 + c], four[12 + c], 0x88);
        const __m512i odd_low = _mm512_shuffle_i32x4(four[c], four[4 + c], 0xdd);
        const __m512i odd_high = _mm512_shuffle_i32x4(four[8 + c], four[12 + c], 0xdd);
        r[c] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
        r[4 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
        r[8 + c] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
        r[12 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
    }
}

/* A line per register. */
LIGER_TEMPLATE void load_lines(const uint16_t *p, int64_t stride, int64_t lines, int64_t k, __m512i r[16]) {
    const __mmask32 mask = k >= BLOCK_K ? 0xffffffffu : ((__mmask32)1 << k) - 1;
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK_LINES; i++)
        r[i] = i < lines ? _mm512_maskz_loadu_epi16(mask, p + i * stride) : _mm512_setzero_si512();
}

/* A pair of k per register. */
LIGER_TEMPLATE void load_pairs(const uint16_t *p, int64_t stride, int64_t lines, int64_t k, __m512i r[16]) {
    const __mmask16 mask = lines >= BLOCK_LINES ? 0xffff : (__mmask16)((1u << lines) - 1);
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK_PAIRS; i++) {
        const __mmask16 first = 2 * i < k ? mask : 0, second = 2 * i + 1 < k ? mask : 0;
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first, p + (2 * i) * stride));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, p + (2 * i + 1) * stride));
        r[i] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }
}

/* Panels [k / 2][width] of pairs. */
LIGER_TEMPLATE void store_pairs(void *packed, int64_t width, int64_t packed_k, int64_t line, int64_t k,
                                const __m512i r[16]) {
    const int64_t panel = line / width * width, group = line - panel, pairs = (packed_k - k) / 2;
    const __mmask16 mask = width - group >= 16 ? 0xffff : (__mmask16)((1u << (width - group)) - 1);
    uint32_t *out = (uint32_t *)packed + panel * (packed_k / 2) + k / 2 * width + group;
    if (pairs >= BLOCK_PAIRS) {
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK_PAIRS; i++) _mm512_mask_storeu_epi32(out + i * width, mask, r[i]);
    } else {
        for (int i = 0; i < pairs; i++) _mm512_mask_storeu_epi32(out + i * width, mask, r[i]);
    }
}

/* Panels [k / 32][width lines][32]: each 16 lines of a step are one AMX tile. */
LIGER_TEMPLATE void store_lines(void *packed, int64_t width, int64_t packed_k, int64_t line, int64_t k,
                                const __m512i r[16]) {
    const int64_t panel = line / width * width;
    uint16_t *out = (uint16_t *)packed + panel * packed_k + k * width + (line - panel) * BLOCK_K;
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK_LINES; i++) _mm512_storeu_si512(out + i * BLOCK_K, r[i]);
}

/* Fills the panels; a loaded block holds lines [l, l + 16) and k [p, p + 32) of the region. `lines_apart` chooses between
 * the two layouts above. */
LIGER_TEMPLATE void pack_bf16(int64_t width, int64_t step, bool lines_apart, const struct gemm_factor *x,
                              struct gemm_span lines, struct gemm_span k, void *packed) {
    const int64_t packed_k = gemm_round_up(k.size, step), padded = gemm_round_up(lines.size, width);
    const uint16_t *data = x->data;
    __m512i r[16];
    if (x->along) {
        data += lines.begin * x->stride + k.begin;
        for (int64_t panel = 0; panel < padded; panel += width)
            for (int64_t p = 0; p < k.size; p += BLOCK_K)
                for (int64_t l = panel; l < panel + width; l += BLOCK_LINES) {
                    const int64_t have = gemm_min(panel + width, lines.size) - l;
                    load_lines(data + l * x->stride + p, x->stride, have, k.size - p, r);
                    if (lines_apart) {
                        store_lines(packed, width, packed_k, l, p, r);
                    } else {
                        transpose_16x16(r);
                        store_pairs(packed, width, packed_k, l, p, r);
                    }
                }
        return;
    }
    /* Rows of memory are far apart: 32 of them for all panels before the next 32. */
    data += k.begin * x->stride + lines.begin;
    for (int64_t p = 0; p < k.size; p += BLOCK_K)
        for (int64_t panel = 0; panel < padded; panel += width)
            for (int64_t l = panel; l < panel + width; l += BLOCK_LINES) {
                const int64_t have = gemm_min(panel + width, lines.size) - l;
                load_pairs(data + p * x->stride + l, x->stride, have > 0 ? have : 0, k.size - p, r);
                if (lines_apart) {
                    transpose_16x16(r);
                    store_lines(packed, width, packed_k, l, p, r);
                } else {
                    store_pairs(packed, width, packed_k, l, p, r);
                }
            }
}

#endif
