/* logprob_map.cuh - from a logit to z, and back to the logit's gradient. */
#ifndef LIGER_OPS_LOGPROB_MAP_CUH
#define LIGER_OPS_LOGPROB_MAP_CUH

#include "liger/cuda/softmax_state.cuh"
#include "liger/ops/logprob/logprob_row.h"

namespace logprob {

/* Rounded as it is: a difference of two z would fuse one of them, and that of a z from itself would not be 0. */
template <bool CAPPED>
__device__ __forceinline__ float z_of(const z_map &map, float logit) {
    const float x = __fmul_rn(logit, map.inner);
    return CAPPED ? __fmul_rn(map.outer, tanhf(x)) : x;
}

/* dz/dlogit. 1 - tanh² as 4·e/(1 + e)², e = exp(-2|x|), which does not cancel where the cap saturates. */
template <bool CAPPED>
__device__ __forceinline__ float slope_of(const z_map &map, float logit) {
    if (!CAPPED) return map.slope;
    const float e = exp2_approx(-2.0f * LOG2E * fabsf(logit * map.inner)), rest = reciprocal_approx(1.0f + e);
    return map.slope * (4.0f * e * rest * rest);
}

/* Nothing is left of 2^x in f32 below this: an exponent that stays finite, so that 0 times it is 0. NaN is left to the term. */
__device__ __forceinline__ float bounded_exponent(float x) { return fmaxf(x, -512.0f); }

} // namespace logprob

#endif
