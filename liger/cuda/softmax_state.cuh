/* softmax_state.cuh - the online softmax on CUDA: the largest value so far, and Σ exp(value - max).
 *
 * An empty state is {-FLT_MAX, 0}, not -inf: values of -inf then give exp(-inf) = 0 and never inf - inf. */
#ifndef LIGER_CUDA_SOFTMAX_STATE_CUH
#define LIGER_CUDA_SOFTMAX_STATE_CUH

#include <float.h>

#include "liger/cuda/reduce.cuh"

/* e^x for x <= 0 by one ex2: relative error 2^-22 + |x|·2^-24; results below 2^-126 are 0. The argument is a difference
 * from a maximum, so that terms with a large |x| are small. */
__device__ __forceinline__ float exp_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504088896341f));
    return y;
}
/* For results that are rounded to T: 16-bit types do not see the error of the approximation. */
template <typename T> __device__ __forceinline__ float exp_for(float x) {
    if constexpr (sizeof(T) == 4) return expf(x);
    else return exp_approx(x);
}

struct softmax_state {
    float max, sum;
};

__device__ __forceinline__ softmax_state softmax_empty() { return {-FLT_MAX, 0.0f}; }

__device__ __forceinline__ softmax_state softmax_merge(softmax_state a, softmax_state b) {
    const float max = fmaxf(a.max, b.max);
    return {max, a.sum * expf(a.max - max) + b.sum * expf(b.max - max)};
}

__device__ __forceinline__ softmax_state warp_merge(softmax_state s) {
    const float max = warp_max(s.max);
    return {max, warp_sum(s.sum * expf(s.max - max))};
}

#endif
