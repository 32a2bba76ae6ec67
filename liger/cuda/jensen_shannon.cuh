/* jensen_shannon.cuh - one element of the generalized Jensen-Shannon divergence, from x = log Q and y = log P; as on the CPU
 * (cpu/jensen_shannon.h). Each mode of the mixture (core/mixture.h) has a formula of its own.
 *
 * In BITS: all logarithms are to base 2, x and y as well, and so are value and slope, which are log2 e times as large then. For
 * who has a choice: the hardware's functions are to base 2, and three products of an element are saved. */
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

template <bool EXACT, bool BITS>
__device__ __forceinline__ float power_of(float x) {
    static_assert(!(EXACT && BITS), "libm's are natural");
    return BITS ? exp2_approx(x) : exp_of<EXACT>(x);
}
template <bool EXACT, bool BITS>
__device__ __forceinline__ float logarithm_of(float x) {
    static_assert(!(EXACT && BITS), "libm's are natural");
    return BITS ? log2_approx(x) : log_of<EXACT>(x);
}

/* Of P and Q let E be the larger, e·E the smaller, and w the weight of the smaller: M = E·g with g = w·e + (1 - w). Then
 *   value = -E·(g·log g + w·e·|x - y|),     x - log M = min(x - y, 0) - log g */
template <bool EXACT, bool EXACT_LOG, bool BITS>
__device__ __forceinline__ element between(mixture m, float x, float y) {
    const float a = max_or_nan(x, LOWEST), b = max_or_nan(y, LOWEST), d = a - b;
    const bool x_is_larger = d > 0.0f;
    const float e = power_of<EXACT, BITS>(-fabsf(d)), large = power_of<EXACT, BITS>(fmaxf(a, b));
    const float weight = x_is_larger ? m.beta : m.rest, other = x_is_larger ? m.rest : m.beta;
    const float g = fmaf(weight, e, other),
                log_g = logarithm_of<EXACT_LOG, BITS>(g); /* 1 if e is: so is the weights' sum */
    const float q = x_is_larger ? large : large * e, below = x_is_larger ? 0.0f : d;
    return {-large * fmaf(weight * e, fabsf(d), g * log_g), m.rest * q * (below - log_g), q};
}

/* Of P and Q let A be the one with the smaller weight s, B the other, and d = log A - log B: M = B·(1 + s·(e^d - 1)). Then
 *   log M - log B = l = log1p(s·expm1(d)),   log A - log M = d - l,     d as far as `far`, and l grows by what is beyond */
template <bool EXACT, bool A_IS_P>
__device__ __forceinline__ element skew(mixture m, float x, float y) {
    const float small = A_IS_P ? m.beta : m.rest, most = A_IS_P ? m.rest : m.beta;
    const float log_a = max_or_nan(A_IS_P ? y : x, LOWEST), log_b = max_or_nan(A_IS_P ? x : y, LOWEST);
    const float d = log_a - log_b, near = fminf(d, m.far), l = log1pf(small * expm1_of<EXACT>(near));
    const float large = exp_of<EXACT>(fmaxf(log_a, log_b)), other = large * exp_of<EXACT>(-fabsf(d));
    const float a = d > 0.0f ? large : other, b = d > 0.0f ? other : large;
    const float of_a = small * a * (near - l), of_b = most * b * (max_or_nan(d - m.far, 0.0f) + l);
    return {of_a - of_b, A_IS_P ? -of_b : of_a, A_IS_P ? b : a};
}

/* KL(P || Q) for a beta of 0, KL(Q || P) for 1. A term whose factor is 0 is 0. */
template <bool EXACT, bool BITS>
__device__ __forceinline__ element to_teacher(float x, float y) {
    const float p = power_of<EXACT, BITS>(y);
    return {p == 0.0f ? 0.0f : p * (y - x), BITS ? -p * LOG2E : -p, power_of<EXACT, BITS>(x)};
}
template <bool EXACT, bool BITS>
__device__ __forceinline__ element to_student(float x, float y) {
    const float q = power_of<EXACT, BITS>(x), value = q == 0.0f ? 0.0f : q * (x - y);
    return {value, BITS ? fmaf(q, LOG2E, value) : value + q, q};
}

__host__ __device__ __forceinline__ bool is_skew(mixture m) {
    return m.mode == MIXTURE_FEW_P || m.mode == MIXTURE_FEW_Q;
}

/* Calls visit(element_of) with the function for this mixture, which is chosen once for many elements. That of a skew one takes
 * registers which some kernels do not have: by_mode is for all others. */
template <bool EXACT, bool EXACT_LOG = EXACT, bool BITS = false, typename V>
__device__ __forceinline__ void by_mode(mixture m, V visit) {
    constexpr bool HALVES =
        !BITS && EXACT == EXACT_LOG; /* others keep a row in registers: none are left for a formula more */
    if (m.beta == 0.0f) visit([](float x, float y) { return to_teacher<EXACT, BITS>(x, y); });
    else if (m.rest == 0.0f) visit([](float x, float y) { return to_student<EXACT, BITS>(x, y); });
    else if (HALVES && m.beta == m.rest)
        visit([](float x, float y) { return between<EXACT, EXACT, BITS>({0.5f, 0.5f, 0.0f, MIXTURE_EVEN}, x, y); });
    else visit([m](float x, float y) { return between<EXACT, EXACT_LOG, BITS>(m, x, y); });
}
template <bool EXACT, typename V>
__device__ __forceinline__ void by_skew_mode(mixture m, V visit) {
    if (m.mode == MIXTURE_FEW_P) visit([m](float x, float y) { return skew<EXACT, true>(m, x, y); });
    else visit([m](float x, float y) { return skew<EXACT, false>(m, x, y); });
}

} // namespace jensen_shannon

#endif
