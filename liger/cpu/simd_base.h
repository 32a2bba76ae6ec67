/* simd_base.h - 4 lanes in the compiler's vector extension: SSE2 on any x86-64, plain vectors elsewhere.
 *
 * There is no fused multiply-add here: v_fma rounds twice (a call of fmaf per lane would cost a hundred times more). */
#ifndef LIGER_CPU_SIMD_BASE_H
#define LIGER_CPU_SIMD_BASE_H

#include <math.h>

enum { V_LANES = 4 };
typedef float v_f32 __attribute__((vector_size(16)));
typedef int32_t v_mask __attribute__((vector_size(16)));
typedef uint32_t v_bits __attribute__((vector_size(16)));

LIGER_TEMPLATE v_f32 v_set(float x) { return (v_f32){x, x, x, x}; }
LIGER_TEMPLATE v_f32 v_zero(void) { return v_set(0.0f); }
LIGER_TEMPLATE v_f32 v_add(v_f32 a, v_f32 b) { return a + b; }
LIGER_TEMPLATE v_f32 v_sub(v_f32 a, v_f32 b) { return a - b; }
LIGER_TEMPLATE v_f32 v_mul(v_f32 a, v_f32 b) { return a * b; }
LIGER_TEMPLATE v_f32 v_div(v_f32 a, v_f32 b) { return a / b; }
LIGER_TEMPLATE v_f32 v_fma(v_f32 a, v_f32 b, v_f32 c) { return a * b + c; }
LIGER_TEMPLATE v_f32 v_fnma(v_f32 a, v_f32 b, v_f32 c) { return c - a * b; }
LIGER_TEMPLATE v_mask v_less(v_f32 a, v_f32 b) { return (v_mask)(a < b); }
LIGER_TEMPLATE v_f32 v_select(v_mask m, v_f32 yes, v_f32 no) { return (v_f32)(((v_mask)yes & m) | ((v_mask)no & ~m)); }
LIGER_TEMPLATE uint32_t v_bits_of(v_mask m) { return (uint32_t)((m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8)); }
LIGER_TEMPLATE v_mask v_mask_of(uint32_t bits) {
    const int32_t b = (int32_t)bits;
    return (v_mask)(((v_mask){b & 1, b & 2, b & 4, b & 8}) != 0);
}
LIGER_TEMPLATE v_f32 v_max(v_f32 a, v_f32 b) { return v_select((v_mask)(a > b), a, b); }
LIGER_TEMPLATE v_f32 v_min(v_f32 a, v_f32 b) { return v_select((v_mask)(a < b), a, b); }
LIGER_TEMPLATE v_f32 v_abs(v_f32 a) { return (v_f32)((v_mask)a & (v_mask)v_set(f32_of_bits(0x7fffffffu))); }
LIGER_TEMPLATE v_f32 v_sqrt(v_f32 a) { return (v_f32){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
/* Adding and taking away 1.5·2^23 leaves the nearest integer; beyond 2^22 a float of interest is clamped by its caller. */
LIGER_TEMPLATE v_f32 v_round(v_f32 a) { return (a + v_set(12582912.0f)) - v_set(12582912.0f); }
LIGER_TEMPLATE v_f32 v_scale2(v_f32 a, v_f32 n) {
    const v_f32 bounded = v_min(v_max(n, v_set(-252.0f)), v_set(254.0f));
    const v_mask whole = __builtin_convertvector(bounded, v_mask);
    const v_mask half = whole >> 1, rest = whole - half;
    return a * (v_f32)((half + 127) << 23) * (v_f32)((rest + 127) << 23);
}
LIGER_TEMPLATE v_f32 v_split2(v_f32 a, v_f32 *n) {
    const v_mask whole = (v_mask)((v_bits)a - V_ROOT_HALF) >> 23;
    *n = __builtin_convertvector(whole, v_f32);
    return (v_f32)((v_bits)a - ((v_bits)whole << 23));
}

LIGER_TEMPLATE v_f32 v_load_f32(const float *p) {
    v_f32 x;
    memcpy(&x, p, sizeof x);
    return x;
}
LIGER_TEMPLATE void v_store_f32(float *p, v_f32 x) { memcpy(p, &x, sizeof x); }
/* The conversions of half.h on four lanes, without its branches. Sums of lanes that are not picked may wrap. */
LIGER_TEMPLATE v_mask v_pick(v_mask m, v_mask yes, v_mask no) { return (yes & m) | (no & ~m); }
LIGER_TEMPLATE v_f32 f32_of_f16(v_mask half) {
    const v_mask sign = (half & 0x8000) << 16, magnitude = half & 0x7fff;
    const v_mask small = (v_mask)(__builtin_convertvector(magnitude, v_f32) * v_set(0x1p-24f));
    const v_mask normal = (magnitude + ((127 - 15) << 10)) << 13;
    const v_mask special = magnitude << 13 | 0x7f800000 | ((v_mask)(magnitude > 0x7c00) & 0x400000);
    return (v_f32)(sign | v_pick(magnitude < 0x400, small, v_pick(magnitude < 0x7c00, normal, special)));
}
LIGER_TEMPLATE v_mask f16_of_f32(v_f32 x) {
    const v_mask bits = (v_mask)x, sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    const v_mask small = (v_mask)((v_bits)((v_f32)magnitude + v_set(0.5f)) - 0x3f000000);
    const v_mask normal = (v_mask)(((v_bits)magnitude - 0x38000000 + 0xfff + (v_bits)(magnitude >> 13 & 1)) >> 13);
    const v_mask special = 0x7c00 | ((v_mask)(magnitude > 0x7f800000) & (0x200 | (magnitude >> 13 & 0x3ff)));
    return sign | v_pick(magnitude < 0x38800000, small, v_pick(magnitude < 0x477ff000, normal, special));
}
LIGER_TEMPLATE v_f32 f32_of_bf16(v_mask half) { return (v_f32)(half << 16); }
LIGER_TEMPLATE v_mask bf16_of_f32(v_f32 x) {
    const v_bits bits = (v_bits)x, high = bits >> 16;
    return v_pick(x == x, (v_mask)((bits + 0x7fff + (high & 1)) >> 16), (v_mask)(high | 0x40));
}

LIGER_TEMPLATE v_mask load_16(const uint16_t *p) { return (v_mask){p[0], p[1], p[2], p[3]}; }
LIGER_TEMPLATE void store_16(uint16_t *p, v_mask x) {
    for (int l = 0; l < V_LANES; l++) p[l] = (uint16_t)x[l];
}
LIGER_TEMPLATE v_f32 v_load_f16(const uint16_t *p) { return f32_of_f16(load_16(p)); }
LIGER_TEMPLATE void v_store_f16(uint16_t *p, v_f32 x) { store_16(p, f16_of_f32(x)); }
LIGER_TEMPLATE v_f32 v_load_bf16(const uint16_t *p) { return f32_of_bf16(load_16(p)); }
LIGER_TEMPLATE void v_store_bf16(uint16_t *p, v_f32 x) { store_16(p, bf16_of_f32(x)); }
LIGER_TEMPLATE v_f32 v_round_to_f16(v_f32 x) { return f32_of_f16(f16_of_f32(x)); }
LIGER_TEMPLATE v_f32 v_round_to_bf16(v_f32 x) { return f32_of_bf16(bf16_of_f32(x)); }

#endif
