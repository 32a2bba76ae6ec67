/* softmax_state.cuh - the online softmax on CUDA: the largest value so far, and a sum relative to it, in powers of two.
 *
 * An empty state is {-FLT_MAX, 0}, not -inf: values of -inf then give 2^-inf = 0 and never inf - inf. */
#ifndef LIGER_CUDA_SOFTMAX_STATE_CUH
#define LIGER_CUDA_SOFTMAX_STATE_CUH

#include <float.h>

#include "liger/cuda/approx.cuh"
#include "liger/cuda/reduce.cuh"

/* warp_max by one integer reduction where there is one: the bits of floats, with the negative ones reversed, are ordered
 * as the floats are. No NaN. */
__device__ __forceinline__ float warp_max_ordered(float x) {
#if __CUDA_ARCH__ >= 800
    const int bits = __float_as_int(x), key = bits ^ (bits >> 31 & 0x7fffffff);
    const int most = __reduce_max_sync(0xffffffffu, key);
    return __int_as_float(most ^ (most >> 31 & 0x7fffffff));
#else
    return warp_max(x);
#endif
}

/* Σ e^(x - max), where max is the largest x. */
struct softmax_state {
    float max, sum;
};

/* How terms are made once a maximum is known: 2^(x·scale - offset), where scale is log2 e and offset the rounded max·log2 e.
 * One fused multiply-add and one ex2 per term; the product is not rounded, so that a large common offset of all x costs no
 * accuracy. A term exp(-d) has the relative error 2^-22 + d·2^-24, as if x - max had been rounded once.
 *
 * What the rounding of offset leaves is in every exponent, and cancels as long as the power of two stays in range: it is 64
 * at most below 2^30. From there on values are at least 64 apart: a term is 1 or next to nothing, whatever the scale, which
 * is 1. */
struct softmax_unit {
    float scale, offset, ln; /* ln: of what an exponent is the power of, for logarithms of terms */
};

__device__ __forceinline__ softmax_state softmax_empty() { return {-FLT_MAX, 0.0f}; }
/* The max of a state whose largest value is x. */
__device__ __forceinline__ float softmax_max(float x) { return fmaxf(x, -FLT_MAX); }

__device__ __forceinline__ softmax_unit softmax_unit_of(float max) {
    if (fabsf(max) < 0x1p30f) return {LOG2E, __fmul_rn(max, LOG2E), LN2};
    return {1.0f, max, 1.0f};
}
__device__ __forceinline__ float softmax_exponent(float x, const softmax_unit &u) {
    return fmaf(x, u.scale, -u.offset);
}
__device__ __forceinline__ float softmax_term(float x, const softmax_unit &u) {
    return exp2_approx(softmax_exponent(x, u));
}
/* What a sum relative to `max` is multiplied by to be one of this unit: both offsets are rounded. From 2^30 on another
 * maximum is too far away to count. */
__device__ __forceinline__ float softmax_rescale(float max, const softmax_unit &u) {
    if (u.scale == 1.0f) return max == u.offset ? 1.0f : 0.0f;
    return exp2_approx(__fmul_rn(max, u.scale) - u.offset);
}

__device__ __forceinline__ softmax_state merge(softmax_state a, softmax_state b) {
    const float max = fmaxf(a.max, b.max);
    const softmax_unit u = softmax_unit_of(max);
    return {max, a.sum * softmax_rescale(a.max, u) + b.sum * softmax_rescale(b.max, u)};
}

/* log Σ e^(x - max). The own term of the maximum is not quite 1: of it alone the logarithm is 0. */
__device__ __forceinline__ float softmax_log_sum(softmax_state s) {
    const float own = softmax_term(s.max, softmax_unit_of(s.max));
    return s.sum == own ? 0.0f : logf(s.sum * reciprocal_approx(own));
}

/* The product is rounded by name: of two states of equal rows the compiler could fuse one and not the other. */
__device__ __forceinline__ softmax_state warp_merge(softmax_state s) {
    const float max = warp_max_ordered(s.max);
    return {max, warp_sum(__fmul_rn(s.sum, softmax_rescale(s.max, softmax_unit_of(max))))};
}

#endif
