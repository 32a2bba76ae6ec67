/* simd_neon.h - 4 lanes with fused multiply-add. aarch64. */
#ifndef LIGER_CPU_SIMD_NEON_H
#define LIGER_CPU_SIMD_NEON_H

#include <arm_neon.h>

enum { V_LANES = 4 };
typedef float32x4_t v_f32;
typedef uint32x4_t v_mask;

LIGER_TEMPLATE v_f32 v_set(float x) { return vdupq_n_f32(x); }
LIGER_TEMPLATE v_f32 v_zero(void) { return vdupq_n_f32(0.0f); }
LIGER_TEMPLATE v_f32 v_add(v_f32 a, v_f32 b) { return vaddq_f32(a, b); }
LIGER_TEMPLATE v_f32 v_sub(v_f32 a, v_f32 b) { return vsubq_f32(a, b); }
LIGER_TEMPLATE v_f32 v_mul(v_f32 a, v_f32 b) { return vmulq_f32(a, b); }
LIGER_TEMPLATE v_f32 v_div(v_f32 a, v_f32 b) { return vdivq_f32(a, b); }
LIGER_TEMPLATE v_f32 v_fma(v_f32 a, v_f32 b, v_f32 c) { return vfmaq_f32(c, a, b); }
LIGER_TEMPLATE v_f32 v_fnma(v_f32 a, v_f32 b, v_f32 c) { return vfmsq_f32(c, a, b); }
LIGER_TEMPLATE v_mask v_less(v_f32 a, v_f32 b) { return vcltq_f32(a, b); }
LIGER_TEMPLATE v_f32 v_select(v_mask m, v_f32 yes, v_f32 no) { return vbslq_f32(m, yes, no); }
LIGER_TEMPLATE v_mask lane_bits(void) { return (v_mask){1, 2, 4, 8}; }
LIGER_TEMPLATE uint32_t v_bits_of(v_mask m) { return vaddvq_u32(vandq_u32(m, lane_bits())); }
LIGER_TEMPLATE v_mask v_mask_of(uint32_t bits) { return vtstq_u32(vdupq_n_u32(bits), lane_bits()); }
/* As on x86, b if either is NaN: vmaxq_f32 would return NaN always. */
LIGER_TEMPLATE v_f32 v_max(v_f32 a, v_f32 b) { return v_select(vcgtq_f32(a, b), a, b); }
LIGER_TEMPLATE v_f32 v_min(v_f32 a, v_f32 b) { return v_select(vcltq_f32(a, b), a, b); }
LIGER_TEMPLATE v_f32 v_sqrt(v_f32 a) { return vsqrtq_f32(a); }
LIGER_TEMPLATE v_f32 v_abs(v_f32 a) { return vabsq_f32(a); }
LIGER_TEMPLATE v_f32 v_round(v_f32 a) { return vrndnq_f32(a); }
LIGER_TEMPLATE v_f32 v_scale2(v_f32 a, v_f32 n) {
    const int32x4_t whole = vcvtnq_s32_f32(v_min(v_max(n, v_set(-252.0f)), v_set(254.0f)));
    const int32x4_t half = vshrq_n_s32(whole, 1), rest = vsubq_s32(whole, half), bias = vdupq_n_s32(127);
    const v_f32 first = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
    const v_f32 second = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23));
    return vmulq_f32(vmulq_f32(a, first), second);
}
LIGER_TEMPLATE v_f32 v_split2(v_f32 a, v_f32 *n) {
    const int32x4_t bits = vreinterpretq_s32_f32(a);
    const int32x4_t whole = vshrq_n_s32(vsubq_s32(bits, vdupq_n_s32(V_ROOT_HALF)), 23);
    *n = vcvtq_f32_s32(whole);
    return vreinterpretq_f32_s32(vsubq_s32(bits, vshlq_n_s32(whole, 23)));
}

LIGER_TEMPLATE v_f32 v_load_f32(const float *p) { return vld1q_f32(p); }
LIGER_TEMPLATE void v_store_f32(float *p, v_f32 x) { vst1q_f32(p, x); }
LIGER_TEMPLATE v_f32 v_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
LIGER_TEMPLATE void v_store_f16(uint16_t *p, v_f32 x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
LIGER_TEMPLATE v_f32 v_load_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
LIGER_TEMPLATE void v_store_bf16(uint16_t *p, v_f32 x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16));
}
LIGER_TEMPLATE v_f32 v_round_to_bf16(v_f32 x) {
    uint16_t narrow[V_LANES];
    v_store_bf16(narrow, x);
    return v_load_bf16(narrow);
}
LIGER_TEMPLATE v_f32 v_round_to_f16(v_f32 x) {
    uint16_t narrow[V_LANES];
    v_store_f16(narrow, x);
    return v_load_f16(narrow);
}

#endif
