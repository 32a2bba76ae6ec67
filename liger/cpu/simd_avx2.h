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
LIGER_TEMPLATE v_mask v_less(v_f32 a, v_f32 b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
LIGER_TEMPLATE v_f32 v_select(v_mask m, v_f32 yes, v_f32 no) { return _mm256_blendv_ps(no, yes, m); }

LIGER_TEMPLATE v_f32 v_load_f32(const float *p) { return _mm256_loadu_ps(p); }
LIGER_TEMPLATE void v_store_f32(float *p, v_f32 x) { _mm256_storeu_ps(p, x); }
#define V_STREAM
LIGER_TEMPLATE void v_stream_f32(float *p, v_f32 x) { _mm256_stream_ps(p, x); }
LIGER_TEMPLATE v_f32 v_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
LIGER_TEMPLATE void v_store_f16(uint16_t *p, v_f32 x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
LIGER_TEMPLATE v_f32 v_load_bf16(const uint16_t *p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
LIGER_TEMPLATE __m256i bf16_in_high_half(v_f32 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, nan);
}
LIGER_TEMPLATE void v_store_bf16(uint16_t *p, v_f32 x) {
    const __m256i high = _mm256_srli_epi32(bf16_in_high_half(x), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(packed));
}
LIGER_TEMPLATE v_f32 v_round_to_bf16(v_f32 x) {
    return _mm256_castsi256_ps(_mm256_and_si256(bf16_in_high_half(x), _mm256_set1_epi32((int)0xffff0000u)));
}
LIGER_TEMPLATE v_f32 v_round_to_f16(v_f32 x) {
    return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#endif
