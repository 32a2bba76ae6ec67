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

enum { BLOCK_LINES = 16, BLOCK_K = 32, BLOCK_PAIRS = BLOCK_K / 2, ASIDE_K = 1024 };

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

LIGER_TEMPLATE __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* 32 of k of one line; what lies past `have` is zero. */
LIGER_TEMPLATE __m512i load_line(const uint16_t *p, int64_t have) {
    const __mmask32 mask = have >= BLOCK_K ? 0xffffffffu : have <= 0 ? 0 : ((__mmask32)1 << have) - 1;
    return _mm512_maskz_loadu_epi16(mask, p);
}

/* k and k + 1 of 16 lines that are neighbours in memory; `have` counts k. */
LIGER_TEMPLATE __m512i load_pair(const uint16_t *p, int64_t stride, __mmask16 lines, int64_t have) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(have > 0 ? lines : 0, p));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(have > 1 ? lines : 0, p + stride));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* ---- panels [k / 2][width] of pairs ------------------------------------------------------------------------------- */

/* Lines along k are copied aside first, each in one go, and transposed from there: rows of a matrix are often a power of
 * two apart, so that 16 of them read side by side fall into one set of the L1, which costs a factor of 4. */
LIGER_TEMPLATE void copy_aside(uint16_t aside[BLOCK_LINES][ASIDE_K + BLOCK_K], const uint16_t *data, int64_t stride,
                               int64_t lines, int64_t k) {
    for (int64_t i = 0; i < BLOCK_LINES; i++)
        for (int64_t p = 0; p < k; p += BLOCK_K)
            _mm512_storeu_si512(aside[i] + p, load_line(data + i * stride + p, i < lines ? k - p : 0));
}

LIGER_TEMPLATE void pack_pairs_along(int64_t width, int64_t packed_k, const struct gemm_factor *x,
                                     struct gemm_span lines, struct gemm_span k, uint32_t *packed) {
    uint16_t aside[BLOCK_LINES][ASIDE_K + BLOCK_K];
    __m512i r[16];
    for (int64_t panel = 0; panel < lines.size; panel += width) {
        for (int64_t done = 0; done < packed_k; done += ASIDE_K) {
            const int64_t pairs = gemm_min(ASIDE_K, packed_k - done) / 2;
            for (int64_t group = 0; group < width; group += BLOCK_LINES) {
                const uint16_t *data =
                    (const uint16_t *)x->data + (lines.begin + panel + group) * x->stride + k.begin + done;
                uint32_t *out = packed + panel * (packed_k / 2) + done / 2 * width + group;
                const __mmask16 lanes = first_lanes(width - group);
                copy_aside(aside, data, x->stride, gemm_min(width - group, lines.size - panel - group),
                           gemm_min(ASIDE_K, k.size - done));
                for (int64_t p = 0; p < pairs; p += BLOCK_PAIRS, out += BLOCK_PAIRS * width) {
                    for (int i = 0; i < BLOCK_LINES; i++) r[i] = _mm512_loadu_si512(aside[i] + 2 * p);
                    transpose_16x16(r);
                    if (pairs - p >= BLOCK_PAIRS)
                        for (int i = 0; i < BLOCK_PAIRS; i++) _mm512_mask_storeu_epi32(out + i * width, lanes, r[i]);
                    else
                        for (int i = 0; i < pairs - p; i++) _mm512_mask_storeu_epi32(out + i * width, lanes, r[i]);
                }
            }
        }
    }
}

/* Rows of memory are far apart: a few of them for all panels before the next ones, which are asked for meanwhile. */
LIGER_TEMPLATE void pack_pairs_across(int64_t width, int64_t packed_k, const struct gemm_factor *x,
                                      struct gemm_span lines, struct gemm_span k, uint32_t *packed) {
    enum { FEW = 8 };
    const uint16_t *data = (const uint16_t *)x->data + k.begin * x->stride + lines.begin;
    for (int64_t few = 0; few < packed_k; few += FEW) {
        const int64_t end = gemm_min(few + FEW, packed_k);
        for (int64_t panel = 0; panel < lines.size; panel += width) {
            for (int64_t group = 0; group < width; group += BLOCK_LINES) {
                const __mmask16 lanes = first_lanes(width - group);
                const __mmask16 have = lanes & first_lanes(lines.size - panel - group);
                const uint16_t *in = data + panel + group;
                uint32_t *out = packed + panel * (packed_k / 2) + group;
                for (int64_t p = few; p < end; p += 2) {
                    __builtin_prefetch(in + (p + FEW) * x->stride, 0, 3);
                    __builtin_prefetch(in + (p + FEW + 1) * x->stride, 0, 3);
                    _mm512_mask_storeu_epi32(out + p / 2 * width, lanes,
                                             load_pair(in + p * x->stride, x->stride, have, k.size - p));
                }
            }
        }
    }
}

LIGER_TEMPLATE void pack_pairs(int64_t width, int64_t step, const struct gemm_factor *x, struct gemm_span lines,
                               struct gemm_span k, void *packed) {
    const int64_t packed_k = gemm_round_up(k.size, step);
    if (x->along) pack_pairs_along(width, packed_k, x, lines, k, packed);
    else pack_pairs_across(width, packed_k, x, lines, k, packed);
}

/* ---- panels [k / 32][width lines][32]: each 16 lines of a step are one AMX tile ------------------------------------ */

LIGER_TEMPLATE void pack_lines_along(int64_t width, const struct gemm_factor *x, struct gemm_span lines,
                                     struct gemm_span k, uint16_t *packed) {
    const int64_t packed_k = gemm_round_up(k.size, BLOCK_K);
    for (int64_t l = 0; l < gemm_round_up(lines.size, width); l++) {
        const uint16_t *line = (const uint16_t *)x->data + (lines.begin + l) * x->stride + k.begin;
        uint16_t *out = packed + l / width * width * packed_k + l % width * BLOCK_K;
        for (int64_t p = 0; p < k.size; p += BLOCK_K)
            _mm512_storeu_si512(out + p * width, load_line(line + p, l < lines.size ? k.size - p : 0));
    }
}

LIGER_TEMPLATE void pack_lines_across(int64_t width, const struct gemm_factor *x, struct gemm_span lines,
                                      struct gemm_span k, uint16_t *packed) {
    const uint16_t *data = (const uint16_t *)x->data + k.begin * x->stride + lines.begin;
    const int64_t packed_k = gemm_round_up(k.size, BLOCK_K);
    __m512i r[16];
    for (int64_t p = 0; p < k.size; p += BLOCK_K) {
        for (int64_t l = 0; l < gemm_round_up(lines.size, width); l += BLOCK_LINES) {
            const __mmask16 have = first_lanes(lines.size - l);
            uint16_t *out = packed + l / width * width * packed_k + p * width + l % width * BLOCK_K;
            for (int i = 0; i < BLOCK_PAIRS; i++)
                r[i] = load_pair(data + (p + 2 * i) * x->stride + l, x->stride, have, k.size - p - 2 * i);
            transpose_16x16(r);
            for (int i = 0; i < BLOCK_LINES; i++) _mm512_storeu_si512(out + i * BLOCK_K, r[i]);
        }
    }
}

LIGER_TEMPLATE void pack_lines(int64_t width, const struct gemm_factor *x, struct gemm_span lines, struct gemm_span k,
                               void *packed) {
    if (x->along) pack_lines_along(width, x, lines, k, packed);
    else pack_lines_across(width, x, lines, k, packed);
}

#endif
