/* half.h - one f16 or bf16 value on the host, round to nearest, ties to even. Internal. */
#ifndef LIGER_CORE_HALF_H
#define LIGER_CORE_HALF_H

#include <stdint.h>
#include <string.h>

#include "liger/core/tensor.h"

static inline uint32_t bits_of_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline float f32_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline float f32_from_bf16(uint16_t bits) { return f32_of_bits((uint32_t)bits << 16); }
static inline uint16_t bf16_from_f32(float x) {
    const uint32_t bits = bits_of_f32(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
/* The answers are those of the processors' own conversions, NaN's payload included, and like theirs do not depend on
 * whether this thread flushes subnormals: no step here has a subnormal f32 that matters. */
static inline float f32_from_f16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude < 0x400u) return f32_of_bits(sign | bits_of_f32((float)magnitude * 0x1p-24f)); /* subnormal, or 0 */
    if (magnitude < 0x7c00u) return f32_of_bits(sign | (magnitude + ((127 - 15) << 10)) << 13);
    return f32_of_bits(sign | 0x7f800000u | (magnitude > 0x7c00u ? 0x400000u : 0) | (magnitude & 0x3ffu) << 13);
}
static inline uint16_t f16_from_f32(float x) {
    const uint32_t bits = bits_of_f32(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu)); /* NaN stays NaN */
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* >= 65520 rounds to infinity */
    /* Below 2^-14: the sum with 1/2 leaves the subnormal in the low bits, rounded to even. A subnormal x may be flushed:
     * it rounds to 0. */
    if (magnitude < 0x38800000u) return (uint16_t)(sign | (bits_of_f32(f32_of_bits(magnitude) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

/* x rounded to the dtype and widened again. */
static inline float f32_round_to(liger_dtype t, float x) {
    if (t == LIGER_F32) return x;
    return t == LIGER_F16 ? f32_from_f16(f16_from_f32(x)) : f32_from_bf16(bf16_from_f32(x));
}

#endif
