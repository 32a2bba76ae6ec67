/* jensen_shannon.cuh - one element of the generalized Jensen-Shannon divergence, from x = log Q and y = log P.
 *
 * Of P and Q let E be the larger, e·E the smaller, and w the weight of the smaller: M = E·g with g = w·e + (1 - w). Then
 *   value = -E·(g·log g + w·e·|x - y|),     x - log M = min(x - y, 0) - log g */
#ifndef LIGER_CUDA_JENSEN_SHANNON_CUH
#define LIGER_CUDA_JENSEN_SHANNON_CUH

#include "liger/core/mixture.h"
#include "liger/cuda/approx.cuh"

namespace jensen_shannon {

/* slope: the derivative of the value by x. */
struct element {
    float value, slope, q;
};

/* e to a power below this is 0; differences of such powers are finite. */
constexpr float LOWEST = -0x1p100f;

template <bool EXACT, bool EXACT_LOG>
__device__ __forceinline__ element between(mixture m, float x, float y) {
    const float a = max_or_nan(x, LOWEST), b = max_or_nan(y, LOWEST), d = a - b;
    const bool x_is_larger = d > 0.0f;
    const float e = exp_of<EXACT>(-fabsf(d)), large = exp_of<EXACT>(fmaxf(a, b));
    const float weight = x_is_larger ? m.beta : m.rest, other = x_is_larger ? m.rest : m.beta;
    const float g = fmaf(weight, e, other), log_g = log_of<EXACT_LOG>(g); /* 1 if e is: so is the weights' sum */
    const float q = x_is_larger ? large : large * e, below = x_is_larger ? 0.0f : d;
    return {-large * fmaf(weight * e, fabsf(d), g * log_g), m.rest * q * (below - log_g), q};
}

/* KL(P || Q) for a beta of 0, KL(Q || P) for 1. A term whose factor is 0 is 0. */
template <bool EXACT>
__device__ __forceinline__ element to_teacher(float x, float y) {
    const float p = exp_of<EXACT>(y);
    return {p == 0.0f ? 0.0f : p * (y - x), -p, exp_of<EXACT>(x)};
}
template <bool EXACT>
__device__ __forceinline__ element to_student(float x, float y) {
    const float q = exp_of<EXACT>(x), value = q == 0.0f ? 0.0f : q * (x - y);
    return {value, value + q, q};
}

/* Calls visit(element_of) with the function for this mixture, which is chosen once for many elements. */
template <bool EXACT, bool EXACT_LOG = EXACT, typename V>
__device__ __forceinline__ void by_mode(mixture m, V visit) {
    if (m.beta == 0.0f) visit([](float x, float y) { return to_teacher<EXACT>(x, y); });
    else if (m.rest == 0.0f) visit([](float x, float y) { return to_student<EXACT>(x, y); });
    else visit([m](float x, float y) { return between<EXACT, EXACT_LOG>(m, x, y); });
}

} // namespace jensen_shannon

#endif
