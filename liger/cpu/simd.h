/* simd.h - the vector vocabulary of CPU kernels: V_LANES f32 values and what can be done with them.
 *
 * Kernels are written once against these names. The file for the instruction set that is being compiled gives the
 * arithmetic; loads and stores of 16-bit floats, tails and fixed-order reductions are built on it here.
 *
 *   v_set v_zero v_add v_sub v_mul v_div v_fma(a,b,c)=a·b+c v_fnma(a,b,c)=c-a·b v_max v_min v_sqrt v_abs
 *   v_load_f32 v_store_f32 v_load_f16 v_store_f16 v_load_bf16 v_store_bf16 (memory of any alignment)
 *   v_scale2(x, n) = x·2^n for integral n   v_round(x) to the nearest integer, ties to even
 *   v_less(a, b) -> v_mask   v_select(mask, yes, no)
 * v_max(a, b) and v_min(a, b) return b if either is NaN.
 */
#ifndef LIGER_CPU_SIMD_H
#define LIGER_CPU_SIMD_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "liger/core/tensor.h"
#include "liger/cpu/isa.h"

/* ---- one value -------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE uint32_t bits_of_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
LIGER_TEMPLATE float f32_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
LIGER_TEMPLATE float f32_from_bf16(uint16_t bits) { return f32_of_bits((uint32_t)bits << 16); }
LIGER_TEMPLATE uint16_t bf16_from_f32(float x) {
    const uint32_t bits = bits_of_f32(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);                 /* ties to even */
}
LIGER_TEMPLATE float f32_from_f16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return f32_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    /* Scaling by 2^112 moves the exponent and makes subnormals exact. */
    return f32_of_bits(sign | bits_of_f32(f32_of_bits(magnitude << 13) * 0x1p112f));
}
LIGER_TEMPLATE uint16_t f16_from_f32(float x) {
    const uint32_t bits = bits_of_f32(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* >= 65520 rounds to infinity */
    if (magnitude < 0x38800000u) /* below 2^-14: the sum with 1/2 leaves the subnormal in the low bits, rounded to even */
        return (uint16_t)(sign | (bits_of_f32(f32_of_bits(magnitude) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

LIGER_TEMPLATE float f32_load(liger_dtype t, const void *p, int64_t i) {
    if (t == LIGER_F32) return ((const float *)p)[i];
    return t == LIGER_F16 ? f32_from_f16(((const uint16_t *)p)[i]) : f32_from_bf16(((const uint16_t *)p)[i]);
}
LIGER_TEMPLATE void f32_store(liger_dtype t, void *p, int64_t i, float x) {
    if (t == LIGER_F32) ((float *)p)[i] = x;
    else ((uint16_t *)p)[i] = t == LIGER_F16 ? f16_from_f32(x) : bf16_from_f32(x);
}
/* x rounded to the dtype and widened again. */
LIGER_TEMPLATE float f32_round_to(liger_dtype t, float x) {
    if (t == LIGER_F32) return x;
    return t == LIGER_F16 ? f32_from_f16(f16_from_f32(x)) : f32_from_bf16(bf16_from_f32(x));
}

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
    uint16_t narrow[V_LANES];
    if (t == LIGER_F32) return x;
    v_store(t, narrow, 0, x);
    return v_load(t, narrow, 0);
}

/* The ragged end: n < V_LANES values, the other lanes read as `fill`. Never touches memory past the end. */
LIGER_TEMPLATE v_f32 v_load_tail_or(liger_dtype t, const void *p, int64_t i, int n, float fill) {
    float lanes[V_LANES];
    for (int l = 0; l < V_LANES; l++) lanes[l] = l < n ? f32_load(t, p, i + l) : fill;
    return v_load_f32(lanes);
}
LIGER_TEMPLATE v_f32 v_load_tail(liger_dtype t, const void *p, int64_t i, int n) {
    return v_load_tail_or(t, p, i, n, 0.0f);
}
LIGER_TEMPLATE void v_store_tail(liger_dtype t, void *p, int64_t i, int n, v_f32 x) {
    float lanes[V_LANES];
    v_store_f32(lanes, x);
    for (int l = 0; l < n; l++) f32_store(t, p, i + l, lanes[l]);
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
