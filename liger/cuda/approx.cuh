/* approx.cuh - functions that the hardware has as one instruction, with their errors. Results below 2^-126 are 0. */
#ifndef LIGER_CUDA_APPROX_CUH
#define LIGER_CUDA_APPROX_CUH

#include <math.h>

/* 2^x: relative error 2^-22. */
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* log2 x: error 2^-22 between 1/2 and 2, relative error 2^-22 elsewhere. */
__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* 1/x within 1 ulp. */
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.693147180559945309f;

/* libm's, or by these. */
template <bool EXACT>
__device__ __forceinline__ float exp_of(float x) {
    return EXACT ? expf(x) : exp2_approx(x * LOG2E);
}
template <bool EXACT>
__device__ __forceinline__ float log_of(float x) {
    return EXACT ? logf(x) : LN2 * log2_approx(x);
}
/* e^x - 1. Not EXACT: off by 2^-22 of e^x, or of 1 below 0. */
template <bool EXACT>
__device__ __forceinline__ float expm1_of(float x) {
    return EXACT ? expm1f(x) : exp_of<false>(x) - 1.0f;
}

/* The larger; NaN if one is. */
__device__ __forceinline__ float max_or_nan(float x, float y) {
#if __CUDA_ARCH__ >= 800
    float most;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(x), "f"(y));
    return most;
#else
    return isnan(x) || isnan(y) ? NAN : fmaxf(x, y);
#endif
}

#endif
