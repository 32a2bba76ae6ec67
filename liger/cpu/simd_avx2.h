/* simd_avx2.h - 8 lanes. AVX2, FMA, F16C. */
#ifndef LIGER_CPU_SIMD_AVX2_H
#define LIGER_CPU_SIMD_AVX2_H

#include <immintrin.h>

enum { V_LANES = 8 };
typedef __m256 v_f32;
typedef __m256 v_mask;

LIGER_TEMPLATE v_f32 v_set(float x) { return _mm256_set1_ps(x); }
LIGER_TEMPLATE v_f32 v_zero(void) { return _mm256_setzero_ps(); }
LIGER_TEMPLATE v_f32 v_add(v_f32 a, v_f32 b) { return _mm256_add_ps(a, b); }
LIGER_TEMPLATE v_f32 v_sub(v_f32 a, v_f32 b) { return _mm256_sub_ps(a, b); }
LIGER_TEMPLATE v_f32 v_mul(v_f32 a, v_f32 b) { return _mm256_mul_ps(a, b); }
LIGER_TEMPLATE v_f32 v_div(v_f32 a, v_f32 b) { return _mm256_div_ps(a, b); }
LIGER_TEMPLATE v_f32 v_fma(v_f32 a, v_f32 b, v_f32 c) { return _mm256_fmadd_ps(a, b, c); }
LIGER_TEMPLATE v_f32 v_fnma(v_f32 a, v_f32 b, v_f32 c) { return _mm256_fnmadd_ps(a, b, c); }
LIGER_TEMPLATE v_f32 v_max(v_f32 a, v_f32 b) { return _mm256_max_ps(a, b); }
LIGER_TEMPLATE v_f32 v_min(v_f32 a, v_f32 b) { return _mm256_min_ps(a, b); }
LIGER_TEMPLATE v_f32 v_sqrt(v_f32 a) { return _mm256_sqrt_ps(a); }
LIGER_TEMPLATE v_f32 v_abs(v_f32 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
LIGER_TEMPLATE v_f32 v_round(v_f32 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* Two factors, each a normal power of two, so that results below 2^-126 round once, at the second product. */
LIGER_TEMPLATE v_f32 v_scale2(v_f32 a, v_f32 n) {
    const __m256i whole =
        _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(n, _mm256_set1_ps(-252.0f)), _mm256_set1_ps(254.0f)));
    const __m256i half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    const __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(a, first), second);
}
LIGER_TEMPLATE v_f32 v_split2(v_f32 a, v_f32 *n) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i whole = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(V_ROOT_HALF)), 23);
    *n = _mm256_cvtepi32_ps(whole);
    return _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(whole, 23)));
}
LIGER_TEMPLATE v_mask v_less(v_f32 a, v_f32 b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
LIGER_TEMPLATE v_f32 v_select(v_mask m, v_f32 yes, v_f32 no) { return _mm256_blendv_ps(no, yes, m); }
LIGER_TEMPLATE uint32_t v_bits_of(v_mask m) { return (uint32_t)_mm256_movemask_ps(m); }
LIGER_TEMPLATE v_mask v_mask_of(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), lane), lane));
}

LIGER_TEMPLATE v_f32 v_load_f32(const float *p) { return _mm256_loadu_ps(p); }
LIGER_TEMPLATE void v_store_f32(float *p, v_f32 x) { _mm256_storeu_ps(p, x); }
#define V_STREAM
LIGER_TEMPLATE void v_stream_f32(float *p, v_f32 x) { _mm256_stream_ps(p, x); }
LIGER_TEMPLATE v_f32 f32_of_f16(__m128i x) { return _mm256_cvtph_ps(x); }
LIGER_TEMPLATE __m128i f16_of_f32(v_f32 x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LIGER_TEMPLATE v_f32 f32_of_bf16(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
LIGER_TEMPLATE __m256i bf16_in_high_half(v_f32 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, nan);
}
LIGER_TEMPLATE __m128i bf16_of_f32(v_f32 x) {
    const __m256i high = _mm256_srli_epi32(bf16_in_high_half(x), 16);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08));
}

LIGER_TEMPLATE v_f32 v_load_f16(const uint16_t *p) { return f32_of_f16(_mm_loadu_si128((const __m128i *)p)); }
LIGER_TEMPLATE v_f32 v_load_bf16(const uint16_t *p) { return f32_of_bf16(_mm_loadu_si128((const __m128i *)p)); }
LIGER_TEMPLATE void v_store_f16(uint16_t *p, v_f32 x) { _mm_storeu_si128((__m128i *)p, f16_of_f32(x)); }
LIGER_TEMPLATE void v_store_bf16(uint16_t *p, v_f32 x) { _mm_storeu_si128((__m128i *)p, bf16_of_f32(x)); }

/* Masked lanes are not touched. 16-bit lanes have no masks: they are read and written as two words of 64 bits, of which the
 * second ends where the row ends, because a store that is read again in another size is waited for. */
#define V_MASKED
LIGER_TEMPLATE __m256i first_of(int n) {
    static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(ones + 8 - n));
}
LIGER_TEMPLATE uint64_t word_at(const uint16_t *p, size_t bytes) {
    uint64_t word = 0;
    memcpy(&word, p, bytes);
    return word;
}
LIGER_TEMPLATE __m128i load_few(const uint16_t *p, int n) {
    if (n > 4) return _mm_set_epi64x((int64_t)(word_at(p + n - 4, 8) >> 16 * (8 - n)), (int64_t)word_at(p, 8));
    if (n == 4) return _mm_cvtsi64_si128((int64_t)word_at(p, 8));
    if (n == 1) return _mm_cvtsi64_si128((int64_t)word_at(p, 2));
    return _mm_cvtsi64_si128((int64_t)(word_at(p, 4) | (n == 3 ? word_at(p + 2, 2) << 32 : 0)));
}
LIGER_TEMPLATE void store_few(uint16_t *p, int n, __m128i x) {
    const uint64_t low = (uint64_t)_mm_cvtsi128_si64(x), high = (uint64_t)_mm_extract_epi64(x, 1);
    if (n >= 4) {
        const uint64_t last = n == 4 ? low : high << 16 * (8 - n) | low >> 16 * (n - 4);
        memcpy(p, &low, 8);
        memcpy(p + n - 4, &last, 8);
        return;
    }
    const uint32_t two = (uint32_t)low;
    const uint16_t last = (uint16_t)(low >> 16 * (n - 1));
    if (n > 1) memcpy(p, &two, 4);
    memcpy(p + n - 1, &last, 2);
}
LIGER_TEMPLATE v_f32 v_load_tail_f32(const float *p, int n) { return _mm256_maskload_ps(p, first_of(n)); }
V_OUT_OF_LINE v_f32 v_load_tail_f16(const uint16_t *p, int n) { return f32_of_f16(load_few(p, n)); }
V_OUT_OF_LINE v_f32 v_load_tail_bf16(const uint16_t *p, int n) { return f32_of_bf16(load_few(p, n)); }
LIGER_TEMPLATE void v_store_tail_f32(float *p, int n, v_f32 x) { _mm256_maskstore_ps(p, first_of(n), x); }
V_OUT_OF_LINE void v_store_tail_f16(uint16_t *p, int n, v_f32 x) { store_few(p, n, f16_of_f32(x)); }
V_OUT_OF_LINE void v_store_tail_bf16(uint16_t *p, int n, v_f32 x) { store_few(p, n, bf16_of_f32(x)); }

LIGER_TEMPLATE v_f32 v_round_to_bf16(v_f32 x) {
    return _mm256_castsi256_ps(_mm256_and_si256(bf16_in_high_half(x), _mm256_set1_epi32((int)0xffff0000u)));
}
LIGER_TEMPLATE v_f32 v_round_to_f16(v_f32 x) { return f32_of_f16(f16_of_f32(x)); }

#endif
