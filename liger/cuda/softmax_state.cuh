/* softmax_state.cuh - the online softmax on CUDA, in powers of two: the largest value so far, and a sum relative to it.
 *
 * An empty state is {-FLT_MAX, 0}, not -inf: values of -inf then give 2^-inf = 0 and never inf - inf. */
#ifndef LIGER_CUDA_SOFTMAX_STATE_CUH
#define LIGER_CUDA_SOFTMAX_STATE_CUH

#include <float.h>

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

/* 2^x by one instruction: relative error 2^-22; results below 2^-126 are 0. */
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Σ 2^(x·log2e - max), where max is the largest x·log2e, rounded. One fused multiply-add and one ex2 per term; the product
 * is not rounded, so that a large common offset of all x costs no accuracy. A term exp(-d) has the relative error
 * 2^-22 + d·2^-24, as if x - max had been rounded once. Finite |x| up to 2^127 / log2e = 2.3e38. */
struct softmax_state {
    float max, sum;
};

constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.693147180559945309f;

__device__ __forceinline__ softmax_state softmax_empty() { return {-FLT_MAX, 0.0f}; }
/* The max of a state whose largest value is x. */
__device__ __forceinline__ float softmax_scale(float x) { return fmaxf(x * LOG2E, -FLT_MAX); }
/* log2 of the term of x. */
__device__ __forceinline__ float softmax_exponent(float x, float max) { return fmaf(x, LOG2E, -max); }
__device__ __forceinline__ float softmax_term(float x, float max) { return exp2_approx(softmax_exponent(x, max)); }

__device__ __forceinline__ softmax_state softmax_merge(softmax_state a, softmax_state b) {
    const float max = fmaxf(a.max, b.max);
    return {max, a.sum * exp2_approx(a.max - max) + b.sum * exp2_approx(b.max - max)};
}

__device__ __forceinline__ softmax_state warp_merge(softmax_state s) {
    const float max = warp_max_ordered(s.max);
    return {max, warp_sum(s.sum * exp2_approx(s.max - max))};
}

#endif
