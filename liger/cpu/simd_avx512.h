/* simd_avx512.h - 16 lanes. AVX-512 F, BW, DQ, VL. */
#ifndef LIGER_CPU_SIMD_AVX512_H
#define LIGER_CPU_SIMD_AVX512_H

#include <immintrin.h>

enum { V_LANES = 16 };
typedef __m512 v_f32;
typedef __mmask16 v_mask;

LIGER_TEMPLATE v_f32 v_set(float x) { return _mm512_set1_ps(x); }
LIGER_TEMPLATE v_f32 v_zero(void) { return _mm512_setzero_ps(); }
LIGER_TEMPLATE v_f32 v_add(v_f32 a, v_f32 b) { return _mm512_add_ps(a, b); }
LIGER_TEMPLATE v_f32 v_sub(v_f32 a, v_f32 b) { return _mm512_sub_ps(a, b); }
LIGER_TEMPLATE v_f32 v_mul(v_f32 a, v_f32 b) { return _mm512_mul_ps(a, b); }
LIGER_TEMPLATE v_f32 v_div(v_f32 a, v_f32 b) { return _mm512_div_ps(a, b); }
LIGER_TEMPLATE v_f32 v_fma(v_f32 a, v_f32 b, v_f32 c) { return _mm512_fmadd_ps(a, b, c); }
LIGER_TEMPLATE v_f32 v_fnma(v_f32 a, v_f32 b, v_f32 c) { return _mm512_fnmadd_ps(a, b, c); }
LIGER_TEMPLATE v_f32 v_max(v_f32 a, v_f32 b) { return _mm512_max_ps(a, b); }
LIGER_TEMPLATE v_f32 v_min(v_f32 a, v_f32 b) { return _mm512_min_ps(a, b); }
LIGER_TEMPLATE v_f32 v_sqrt(v_f32 a) { return _mm512_sqrt_ps(a); }
LIGER_TEMPLATE v_f32 v_abs(v_f32 a) { return _mm512_abs_ps(a); }
LIGER_TEMPLATE v_f32 v_round(v_f32 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
LIGER_TEMPLATE v_f32 v_scale2(v_f32 a, v_f32 n) { return _mm512_scalef_ps(a, n); }
LIGER_TEMPLATE v_f32 v_split2(v_f32 a, v_f32 *n) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i whole = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(V_ROOT_HALF)), 23);
    *n = _mm512_cvtepi32_ps(whole);
    return _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(whole, 23)));
}
LIGER_TEMPLATE v_mask v_less(v_f32 a, v_f32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
LIGER_TEMPLATE v_f32 v_select(v_mask m, v_f32 yes, v_f32 no) { return _mm512_mask_blend_ps(m, no, yes); }
LIGER_TEMPLATE uint32_t v_bits_of(v_mask m) { return m; }
LIGER_TEMPLATE v_mask v_mask_of(uint32_t bits) { return (v_mask)bits; }

LIGER_TEMPLATE v_f32 v_load_f32(const float *p) { return _mm512_loadu_ps(p); }
LIGER_TEMPLATE void v_store_f32(float *p, v_f32 x) { _mm512_storeu_ps(p, x); }
#define V_STREAM
LIGER_TEMPLATE void v_stream_f32(float *p, v_f32 x) { _mm512_stream_ps(p, x); }
LIGER_TEMPLATE v_f32 f32_of_f16(__m256i x) { return _mm512_cvtph_ps(x); }
LIGER_TEMPLATE __m256i f16_of_f32(v_f32 x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LIGER_TEMPLATE v_f32 f32_of_bf16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
/* Integer rounding, not vcvtneps2bf16: that instruction flushes subnormals, torch and the other sets do not. */
LIGER_TEMPLATE __m512i bf16_in_high_half(v_f32 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i even_rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_mask_add_epi32(even_rounded, odd, bits, _mm512_set1_epi32(0x8000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}
LIGER_TEMPLATE __m256i bf16_of_f32(v_f32 x) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_in_high_half(x), 16));
}

LIGER_TEMPLATE v_f32 v_load_f16(const uint16_t *p) { return f32_of_f16(_mm256_loadu_si256((const __m256i *)p)); }
LIGER_TEMPLATE v_f32 v_load_bf16(const uint16_t *p) { return f32_of_bf16(_mm256_loadu_si256((const __m256i *)p)); }
LIGER_TEMPLATE void v_store_f16(uint16_t *p, v_f32 x) { _mm256_storeu_si256((__m256i *)p, f16_of_f32(x)); }
LIGER_TEMPLATE void v_store_bf16(uint16_t *p, v_f32 x) { _mm256_storeu_si256((__m256i *)p, bf16_of_f32(x)); }

/* Masked lanes are not touched. */
#define V_MASKED
LIGER_TEMPLATE __mmask16 first_of(int n) { return (__mmask16)((1u << n) - 1); }
LIGER_TEMPLATE v_f32 v_load_tail_f32(const float *p, int n) { return _mm512_maskz_loadu_ps(first_of(n), p); }
LIGER_TEMPLATE v_f32 v_load_tail_f16(const uint16_t *p, int n) {
    return f32_of_f16(_mm256_maskz_loadu_epi16(first_of(n), p));
}
LIGER_TEMPLATE v_f32 v_load_tail_bf16(const uint16_t *p, int n) {
    return f32_of_bf16(_mm256_maskz_loadu_epi16(first_of(n), p));
}
LIGER_TEMPLATE void v_store_tail_f32(float *p, int n, v_f32 x) { _mm512_mask_storeu_ps(p, first_of(n), x); }
LIGER_TEMPLATE void v_store_tail_f16(uint16_t *p, int n, v_f32 x) {
    _mm256_mask_storeu_epi16(p, first_of(n), f16_of_f32(x));
}
LIGER_TEMPLATE void v_store_tail_bf16(uint16_t *p, int n, v_f32 x) {
    _mm256_mask_storeu_epi16(p, first_of(n), bf16_of_f32(x));
}

/* 32 values as those at even and those at odd places: no lane has to be moved. */
#define V_TWO_BF16
LIGER_TEMPLATE void v_load_two_bf16(const uint16_t *p, v_f32 x[2]) {
    const __m512i both = _mm512_loadu_si512(p);
    x[0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    x[1] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000u)));
}
LIGER_TEMPLATE __m512i two_bf16(const v_f32 x[2]) {
    const __m512i even = _mm512_srli_epi32(bf16_in_high_half(x[0]), 16), odd = bf16_in_high_half(x[1]);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, even, odd);
}
LIGER_TEMPLATE void v_store_two_bf16(uint16_t *p, const v_f32 x[2]) { _mm512_storeu_si512(p, two_bf16(x)); }
LIGER_TEMPLATE void v_stream_two_bf16(uint16_t *p, const v_f32 x[2]) { _mm512_stream_si512((void *)p, two_bf16(x)); }
LIGER_TEMPLATE v_f32 v_round_to_bf16(v_f32 x) {
    return _mm512_castsi512_ps(_mm512_and_si512(bf16_in_high_half(x), _mm512_set1_epi32((int)0xffff0000u)));
}
LIGER_TEMPLATE v_f32 v_round_to_f16(v_f32 x) { return f32_of_f16(f16_of_f32(x)); }

#endif
