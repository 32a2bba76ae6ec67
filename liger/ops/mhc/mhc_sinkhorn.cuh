/* mhc_sinkhorn.cuh - Sinkhorn's iteration on a GPU: as many threads of a warp as a token has streams, filled up to W, a power of
 * two, have a row of its matrix each. Sums over a column are exchanges between them; all of a warp must call. */
#ifndef LIGER_OPS_MHC_SINKHORN_CUH
#define LIGER_OPS_MHC_SINKHORN_CUH

#include "liger/cuda/launch.cuh"
#include "liger/cuda/reduce.cuh"
#include "liger/ops/mhc/mhc_problem.h"

namespace mhc {

__device__ __forceinline__ float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }
/* Its derivative: near 1 the difference from 1 would be lost. */
__device__ __forceinline__ float logistic_slope(float x) { return logistic(x) * logistic(-x); }
/* 1 / sum in two factors: alone it may be too large for a float. */
struct reciprocal {
    float power, rest;
};
__device__ __forceinline__ reciprocal reciprocal_of(float sum) {
    const float power = sum < 0x1p-100f ? 0x1p64f : 1.0f;
    return {power, 1.0f / (sum * power)};
}
__device__ __forceinline__ float times(float x, const reciprocal &of) { return x * of.power * of.rest; }

template <int W>
__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
    for (int offset = W / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

/* The first hc values of a row; what is behind becomes 0, and so does all of a row that is none. */
template <int W>
__device__ __forceinline__ void softmax_row(float (&x)[W], int hc, bool active) {
    float most = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < W; i++)
        if (i < hc) most = fmaxf(most, x[i]); /* a NaN is found in the sum */
#pragma unroll
    for (int i = 0; i < W; i++) {
        x[i] = i < hc && active ? expf(x[i] - most) : 0.0f;
        sum += x[i];
    }
    const float inverse = active ? 1.0f / sum : 0.0f;
#pragma unroll
    for (int i = 0; i < W; i++) x[i] *= inverse;
}

/* Divides by the sums over out plus epsilon; answers what the column of this thread's number was divided by. */
template <int W>
__device__ __forceinline__ float divide_columns(float (&a)[W], int hc, int own, float epsilon) {
    float divisor = 1;
#pragma unroll
    for (int i = 0; i < W; i++) {
        if (i >= hc) continue;
        const float sum = sum_of_lanes<W>(a[i]) + epsilon;
        a[i] = times(a[i], reciprocal_of(sum));
        if (i == own) divisor = sum;
    }
    return divisor;
}

/* By the sum over in; a row that is none stays. */
template <int W>
__device__ __forceinline__ float divide_row(float (&a)[W], bool active, float epsilon) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < W; i++) sum += a[i];
    sum = active ? sum + epsilon : 1.0f;
    const reciprocal of = reciprocal_of(sum);
#pragma unroll
    for (int i = 0; i < W; i++) a[i] = times(a[i], of);
    return sum;
}

/* Step s divides columns if it is odd. */
template <int W>
__device__ __forceinline__ float sinkhorn_step(float (&a)[W], int64_t step, int hc, int own, float epsilon) {
    return step % 2 ? divide_columns(a, hc, own, epsilon) : divide_row(a, own < hc, epsilon);
}

/* The gradient g of the matrix a after a step becomes that before it, and so does a. What is no row or column keeps zeros. */
template <int W>
__device__ __forceinline__ void undo_step(float (&a)[W], float (&g)[W], int64_t step, int hc, int own, float divisor) {
    float dot = 0;
#pragma unroll
    for (int i = 0; i < W; i++) dot = fmaf(g[i], a[i], dot);
#pragma unroll
    for (int i = 0; i < W; i++) {
        if (i >= hc) continue;
        const float sum = step % 2 ? sum_of_lanes<W>(g[i] * a[i]) : dot;
        const float by = step % 2 ? __shfl_sync(0xffffffffu, divisor, i, W) : divisor;
        g[i] = own < hc ? (g[i] - sum) / by : 0.0f;
        a[i] *= by;
    }
}

/* Runs the statement with W = the number of lanes; nothing beyond MHC_MOST_LANES. */
#define MHC_FOR_LANES(lanes, W, ...)                                                                                   \
    switch (lanes) {                                                                                                   \
        case 1: {                                                                                                      \
            constexpr int W = 1;                                                                                       \
            __VA_ARGS__;                                                                                               \
        } break;                                                                                                       \
        case 2: {                                                                                                      \
            constexpr int W = 2;                                                                                       \
            __VA_ARGS__;                                                                                               \
        } break;                                                                                                       \
        case 4: {                                                                                                      \
            constexpr int W = 4;                                                                                       \
            __VA_ARGS__;                                                                                               \
        } break;                                                                                                       \
        case 8: {                                                                                                      \
            constexpr int W = 8;                                                                                       \
            __VA_ARGS__;                                                                                               \
        } break;                                                                                                       \
        case 16: {                                                                                                     \
            constexpr int W = 16;                                                                                      \
            __VA_ARGS__;                                                                                               \
        } break;                                                                                                       \
        default: break;                                                                                                \
    }

} // namespace mhc

#endif
