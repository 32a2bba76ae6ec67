/* mta_source.cuh - what multi-token attention convolves, on CUDA: planes of P, made from scores and two numbers of each row, or
 * of values as they are; 0 beyond the plane and beyond the diagonal. */
#ifndef LIGER_OPS_MTA_SOURCE_CUH
#define LIGER_OPS_MTA_SOURCE_CUH

#include "liger/cuda/pack.cuh"
#include "liger/cuda/softmax_state.cuh"
#include "liger/ops/multi_token_attention/multi_token_attention_problem.h"

namespace mta {

enum source_kind { SOFTMAX, SPARSEMAX, AS_IT_IS };

/* e^(x - max). The difference is taken first: a row's statistics are a caller's, in which what rounds an offset of all exponents
 * would not cancel. */
__device__ __forceinline__ float term_of(float x, float max) { return exp2_approx((x - max) * LOG2E); }

/* What makes a row of scores a row of P. */
template <source_kind KIND>
struct row_of_p {
    float first, second;

    __device__ __forceinline__ row_of_p(const float *statistics, int64_t r) {
        if constexpr (KIND != AS_IT_IS) {
            first = statistics[2 * r], second = statistics[2 * r + 1]; /* a caller's, at any float */
        }
    }
    __device__ __forceinline__ bool member(float x) const { return !(x <= first); } /* sparse; NaN has them all */
    /* Not rounded. */
    __device__ __forceinline__ float of(float x) const {
        if constexpr (KIND == SOFTMAX) return term_of(x, first) * second;
        if constexpr (KIND == AS_IT_IS) return x;
        const float over = second < 0.0f ? -second : (x - first) - second;
        return member(x) ? over < 0.0f ? 0.0f : over : 0.0f; /* NaN is not below 0 */
    }
};

template <typename T>
struct source {
    const T *values;
    const float *statistics;
    int64_t size;

    template <source_kind KIND>
    __device__ __forceinline__ float at(int64_t plane, int64_t row, int64_t col) const {
        if (row < 0 || row >= size || col < 0 || col > row) return 0.0f;
        const int64_t r = plane * size + row;
        return round_to<T>(row_of_p<KIND>(statistics, r).of(to_f32(values[r * size + col])));
    }
};

/* out = Σ in · taps over the input channels of a group, for the output channels of a group: forward, and with taps that are
 * turned over and channels that change places backward's dP. */
template <typename T>
struct correlation {
    mta_shape shape;
    source<T> in;
    const void *weight, *bias;
    liger_dtype weight_dtype;
    T *out;
    int64_t in_channels, out_channels; /* of a group */
    bool transposed;

    /* The first tap of the pair. */
    __device__ __forceinline__ int64_t taps_of(int64_t group, int64_t of_out, int64_t of_in) const {
        const int64_t pair = transposed ? (group * in_channels + of_in) * out_channels + of_out
                                        : (group * out_channels + of_out) * in_channels + of_in;
        return pair * shape.kernel[0] * shape.kernel[1];
    }
    __device__ __forceinline__ float bias_of(int64_t channel) const {
        return bias ? load_as(bias, weight_dtype, channel) : 0.0f;
    }
};

/* The planes of a group that an output plane is made from: the group, the channel in it, the first plane. Planes are below 2^31,
 * see fits_grid: divisions of 64 bits are calls, which cost registers. */
struct group_place {
    int64_t group, of_out, in_plane, channel;
};
template <typename T>
__device__ __forceinline__ group_place group_of(const correlation<T> &c, unsigned plane) {
    const unsigned channels = (unsigned)(c.out_channels * c.shape.groups), channel = plane % channels;
    const unsigned group = channel / (unsigned)c.out_channels;
    return {group, channel % (unsigned)c.out_channels,
            (int64_t)(plane / channels * (unsigned)c.shape.groups + group) * c.in_channels, channel};
}

/* ---- dweight and dbias: partial sums ------------------------------------------------------------------------------- */

struct tap_sums {
    mta_shape shape;
    float *parts; /* [chunks, taps + out] */
    bool taps, plain;
};

/* The row of a triangle that has its i-th element, counted row by row. */
__device__ __forceinline__ int triangle_row(int64_t i) {
    int row = (int)((sqrt(8.0 * (double)i + 1.0) - 1.0) * 0.5);
    while ((int64_t)row * (row + 1) / 2 > i) row--;
    while ((int64_t)(row + 1) * (row + 2) / 2 <= i) row++;
    return row;
}

/* Which tile of a sample, counted by rows up to the diagonal, is an item of so many for each sample. */
struct tile_place {
    int64_t sample;
    int row, col;
};
__device__ __forceinline__ tile_place tile_of(int64_t item, int64_t triangle, int side) {
    const int64_t sample = item / triangle, i = item - sample * triangle;
    const int row = triangle_row(i);
    return {sample, row * side, (int)(i - (int64_t)row * (row + 1) / 2) * side};
}

} // namespace mta

#endif
