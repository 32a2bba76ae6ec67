/* simd.h - the vector vocabulary of CPU kernels: V_LANES f32 values and what can be done with them.
 *
 * Kernels are written once against these names. The file for the instruction set that is being compiled gives the
 * arithmetic; loads and stores of 16-bit floats, tails and fixed-order reductions are built on it here.
 *
 *   v_set v_zero v_add v_sub v_mul v_div v_fma(a,b,c)=a·b+c v_fnma(a,b,c)=c-a·b v_max v_min v_sqrt v_abs
 *   v_load_f32 v_store_f32 v_load_f16 v_store_f16 v_load_bf16 v_store_bf16 (memory of any alignment)
 *   v_scale2(x, n) = x·2^n for integral n   v_split2(x, &n) = m with x = m·2^n and m in [√½, √2), of a positive normal x
 *   v_round(x) to the nearest integer, ties to even
 *   v_round_to_f16 v_round_to_bf16: rounded to that dtype and widened again
 *   v_less(a, b) -> v_mask   v_select(mask, yes, no)   v_bits_of(mask): lane l is bit l   v_mask_of(bits)
 * v_max(a, b) and v_min(a, b) return b if either is NaN.
 */
#ifndef LIGER_CPU_SIMD_H
#define LIGER_CPU_SIMD_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "liger/core/half.h"
#include "liger/core/rows.h"
#include "liger/cpu/isa.h"

/* ---- one value -------------------------------------------------------------------------------------------------- */

/* Bytes of an element. */
LIGER_TEMPLATE size_t f_size(liger_dtype t) { return t == LIGER_F32 ? sizeof(float) : sizeof(uint16_t); }
LIGER_TEMPLATE float f32_load(liger_dtype t, const void *p, int64_t i) {
    if (t == LIGER_F32) return ((const float *)p)[i];
    return t == LIGER_F16 ? f32_from_f16(((const uint16_t *)p)[i]) : f32_from_bf16(((const uint16_t *)p)[i]);
}
LIGER_TEMPLATE void f32_store(liger_dtype t, void *p, int64_t i, float x) {
    if (t == LIGER_F32) ((float *)p)[i] = x;
    else ((uint16_t *)p)[i] = t == LIGER_F16 ? f16_from_f32(x) : bf16_from_f32(x);
}

/* The i-th of indices that are i32 or i64. */
LIGER_TEMPLATE int64_t index_load(liger_dtype t, const void *p, int64_t i) {
    return t == LIGER_I32 ? ((const int32_t *)p)[i] : ((const int64_t *)p)[i];
}

/* The bits of √½. */
enum { V_ROOT_HALF = 0x3f3504f3 };

/* Not one copy for each use: for what is a small part of the time, but would be much of the code. */
#define V_OUT_OF_LINE static __attribute__((noinline, unused))

/* ---- V_LANES values --------------------------------------------------------------------------------------------- */

#if defined(__AVX512F__)
#include "liger/cpu/simd_avx512.h"
#elif defined(__AVX2__)
#include "liger/cpu/simd_avx2.h"
#elif LIGER_CPU_CODE == LIGER_CPU_CODE_neon
#include "liger/cpu/simd_neon.h"
#else
#include "liger/cpu/simd_base.h"
#endif

LIGER_TEMPLATE v_f32 v_load(liger_dtype t, const void *p, int64_t i) {
    if (t == LIGER_F32) return v_load_f32((const float *)p + i);
    return t == LIGER_F16 ? v_load_f16((const uint16_t *)p + i) : v_load_bf16((const uint16_t *)p + i);
}
LIGER_TEMPLATE void v_store(liger_dtype t, void *p, int64_t i, v_f32 x) {
    if (t == LIGER_F32) v_store_f32((float *)p + i, x);
    else if (t == LIGER_F16) v_store_f16((uint16_t *)p + i, x);
    else v_store_bf16((uint16_t *)p + i, x);
}
LIGER_TEMPLATE v_f32 v_round_to(liger_dtype t, v_f32 x) {
    if (t == LIGER_F32) return x;
    return t == LIGER_F16 ? v_round_to_f16(x) : v_round_to_bf16(x);
}

/* The ragged end: 0 < n < V_LANES values, the other lanes zero. Never touches memory past the end. Where the set has no
 * masked access, functions out of line: inlined for each dtype and use, tails were most of the code and of the time to
 * compile it. The conversion is the vectors' own: a value has the same bits wherever in a row it stands. */
#if !defined(V_MASKED)

LIGER_TEMPLATE void copy_few(char *to, const char *from, size_t bytes) {
    for (size_t part = 16; part >= 2; part /= 2) {
        if (!(bytes & part)) continue;
        memcpy(to, from, part);
        to += part, from += part;
    }
}
LIGER_TEMPLATE v_f32 load_few(liger_dtype t, const void *p, int n) {
    char few[sizeof(v_f32)] = {0};
    copy_few(few, p, (size_t)n * f_size(t));
    return v_load(t, few, 0);
}
LIGER_TEMPLATE void store_few(liger_dtype t, void *p, int n, v_f32 x) {
    char few[sizeof(v_f32)];
    v_store(t, few, 0, x);
    copy_few(p, few, (size_t)n * f_size(t));
}
V_OUT_OF_LINE v_f32 v_load_tail_f32(const float *p, int n) { return load_few(LIGER_F32, p, n); }
V_OUT_OF_LINE v_f32 v_load_tail_f16(const uint16_t *p, int n) { return load_few(LIGER_F16, p, n); }
V_OUT_OF_LINE v_f32 v_load_tail_bf16(const uint16_t *p, int n) { return load_few(LIGER_BF16, p, n); }
V_OUT_OF_LINE void v_store_tail_f32(float *p, int n, v_f32 x) { store_few(LIGER_F32, p, n, x); }
V_OUT_OF_LINE void v_store_tail_f16(uint16_t *p, int n, v_f32 x) { store_few(LIGER_F16, p, n, x); }
V_OUT_OF_LINE void v_store_tail_bf16(uint16_t *p, int n, v_f32 x) { store_few(LIGER_BF16, p, n, x); }
#endif

LIGER_TEMPLATE v_f32 v_load_tail(liger_dtype t, const void *p, int64_t i, int n) {
    if (t == LIGER_F32) return v_load_tail_f32((const float *)p + i, n);
    return t == LIGER_F16 ? v_load_tail_f16((const uint16_t *)p + i, n) : v_load_tail_bf16((const uint16_t *)p + i, n);
}
LIGER_TEMPLATE void v_store_tail(liger_dtype t, void *p, int64_t i, int n, v_f32 x) {
    if (t == LIGER_F32) v_store_tail_f32((float *)p + i, n, x);
    else if (t == LIGER_F16) v_store_tail_f16((uint16_t *)p + i, n, x);
    else v_store_tail_bf16((uint16_t *)p + i, n, x);
}

/* n of V_LANES values: a literal n == V_LANES costs nothing. */
LIGER_TEMPLATE v_f32 v_load_n(liger_dtype t, const void *p, int64_t i, int n) {
    return n == V_LANES ? v_load(t, p, i) : v_load_tail(t, p, i, n);
}
LIGER_TEMPLATE void v_store_n(liger_dtype t, void *p, int64_t i, int n, v_f32 x) {
    if (n == V_LANES) v_store(t, p, i, x);
    else v_store_tail(t, p, i, n, x);
}

/* x with all lanes but the first n zero. */
LIGER_TEMPLATE v_f32 v_first(v_f32 x, int n) {
    static const float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return n == V_LANES ? x : v_select(v_less(v_load_f32(lane), v_set((float)n)), x, v_zero());
}

/* Runs the statement over [0, count): whole vectors with the literal n = V_LANES, then the tail with n < V_LANES. */
#define V_FOR_EACH(i, n, count, ...)                                                                                   \
    do {                                                                                                               \
        int64_t i = 0;                                                                                                 \
        for (; i + V_LANES <= (count); i += V_LANES) {                                                                 \
            enum { n = V_LANES };                                                                                      \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
        if (i < (count)) {                                                                                             \
            const int n = (int)((count)-i);                                                                            \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

/* V_FOR_EACH in `ways` chains, k = 0, 1, …, that need not wait for each other: sums. What is left falls to the first one. */
#define V_FOR_EACH_CHAIN(i, n, k, ways, count, ...)                                                                    \
    do {                                                                                                               \
        int64_t done = 0;                                                                                              \
        for (; done + (ways)*V_LANES <= (count); done += (ways)*V_LANES)                                               \
            for (int k = 0; k < (ways); k++) {                                                                         \
                const int64_t i = done + k * V_LANES;                                                                  \
                enum { n = V_LANES };                                                                                  \
                __VA_ARGS__;                                                                                           \
            }                                                                                                          \
        for (; done < (count); done += V_LANES) {                                                                      \
            const int64_t i = done;                                                                                    \
            const int n = (count)-done < V_LANES ? (int)((count)-done) : V_LANES;                                      \
            enum { k = 0 };                                                                                            \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

/* n of 2 · V_LANES values in two vectors, for loops whose elements are independent: which value lies in which lane is
 * nobody's business, and v_store_two puts it where v_load_two found it if n is the same. */
LIGER_TEMPLATE void v_load_two(liger_dtype t, const void *p, int64_t i, int n, v_f32 x[2]) {
#if defined(V_TWO_BF16)
    if (t == LIGER_BF16 && n == 2 * V_LANES) {
        v_load_two_bf16((const uint16_t *)p + i, x);
        return;
    }
#endif
    x[0] = v_load_n(t, p, i, n < V_LANES ? n : V_LANES);
    x[1] = n > V_LANES ? v_load_n(t, p, i + V_LANES, n - V_LANES) : v_zero();
}
LIGER_TEMPLATE void v_store_two(liger_dtype t, void *p, int64_t i, int n, const v_f32 x[2]) {
#if defined(V_TWO_BF16)
    if (t == LIGER_BF16 && n == 2 * V_LANES) {
        v_store_two_bf16((uint16_t *)p + i, x);
        return;
    }
#endif
    v_store_n(t, p, i, n < V_LANES ? n : V_LANES, x[0]);
    if (n > V_LANES) v_store_n(t, p, i + V_LANES, n - V_LANES, x[1]);
}

/* v_store_two past the caches, where the set can: memory is not read before it is written, and what others have in the
 * caches stays there. p + i is aligned to 64 bytes if n is all. Before another thread may look: v_stream_end(). */
LIGER_TEMPLATE void v_stream_two(liger_dtype t, void *p, int64_t i, int n, const v_f32 x[2]) {
#if defined(V_TWO_BF16)
    if (t == LIGER_BF16 && n == 2 * V_LANES) {
        v_stream_two_bf16((uint16_t *)p + i, x);
        return;
    }
#endif
#if defined(V_STREAM)
    if (t == LIGER_F32 && n == 2 * V_LANES) {
        v_stream_f32((float *)p + i, x[0]);
        v_stream_f32((float *)p + i + V_LANES, x[1]);
        return;
    }
#endif
    v_store_two(t, p, i, n, x);
}
LIGER_TEMPLATE void v_stream_end(void) {
#if defined(V_STREAM)
    _mm_sfence();
#endif
}

/* V_FOR_EACH by two vectors: n is 2 · V_LANES, then less. */
#define V_FOR_EACH_TWO(i, n, count, ...)                                                                               \
    do {                                                                                                               \
        int64_t i = 0;                                                                                                 \
        for (; i + 2 * V_LANES <= (count); i += 2 * V_LANES) {                                                         \
            enum { n = 2 * V_LANES };                                                                                  \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
        if (i < (count)) {                                                                                             \
            const int n = (int)((count)-i);                                                                            \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

/* Where a row of a folded view starts. */
static inline void *row_of(liger_rows rows, int64_t r, size_t element) {
    return (char *)rows.data + liger_row_offset(rows, r) * (int64_t)element;
}

/* Reductions across lanes, pairwise in a fixed order. */
LIGER_TEMPLATE float v_sum(v_f32 x) {
    float lanes[V_LANES];
    v_store_f32(lanes, x);
    for (int width = V_LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++) lanes[l] += lanes[l + width];
    return lanes[0];
}
LIGER_TEMPLATE float v_max_across(v_f32 x) {
    float lanes[V_LANES], most;
    v_store_f32(lanes, x);
    most = lanes[0];
    for (int l = 1; l < V_LANES; l++) most = lanes[l] > most ? lanes[l] : most;
    return most;
}

#endif
