/* multi_token_attention_cuda.cu - multi-token attention on CUDA.
 *
 * Forward: two numbers of each row of scores, a warp a row; then the correlation, which makes P from them in the window of each
 * tile: 16-bit planes and taps on tensor cores (mta_tensor.cuh), else by multiplications in f32 (mta_window.cuh), and place by
 * place where there are strides or dilations. Backward: dP by the same kernels, in the place of dscores; dscores from it, a warp
 * a row, which it holds in registers up to 8 packs a lane; dweight and dbias as partial sums, added in order. P is made three
 * times and never kept.
 *
 * 2 x 32 planes of 2048 x 2048, bf16, 537 MB a tensor, of which half lies beyond the diagonal. Forward reads half of scores
 * twice and writes y: 1.07 GB, .25 ms at 4.26 TB/s; expected .07 + .3 ms. Backward: dP .13, dscores (half of scores and dP, all of
 * dscores) .25, dweight .13 ms of memory; expected .9 ms in all. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/simplex.cuh"
#include "liger/ops/multi_token_attention/mta_tensor.cuh"
#include "liger/ops/multi_token_attention/mta_window.cuh"

namespace mta {

enum { THREADS = 256, HELD = 8 /* packs of a row that a lane has at once */ };

/* ---- rows ---------------------------------------------------------------------------------------------------------- */

/* A part of a row of which `count` elements are up to the diagonal: HELD packs of each lane of a warp, from `begin` on. */
template <typename T, int N>
struct row_part {
    pack<T, N> of[HELD];
    enum { SIZE = HELD * WARP * N };

    static __device__ __forceinline__ int64_t index(int64_t begin, int k) {
        return begin + (k * (int)WARP + (int)(threadIdx.x % WARP)) * N;
    }
    __device__ __forceinline__ void load(const T *row, int64_t begin, int64_t count) {
#pragma unroll
        for (int k = 0; k < HELD; k++)
            if (index(begin, k) < count) of[k] = load_pack<T, N>(row + index(begin, k));
    }
    /* Scores: what lies beyond the diagonal in a pack that crosses it is nothing to a softmax, once for all its elements. */
    __device__ __forceinline__ void load_scores(const T *row, int64_t begin, int64_t count) {
        load(row, begin, count);
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            const int64_t left = count - index(begin, k);
            if (left > 0 && left < N) cut(of[k], (int)left, -INFINITY);
        }
    }
    /* Leaves the first `count`. */
    static __device__ __forceinline__ void cut(pack<T, N> &x, int count, float beyond) {
#pragma unroll
        for (int e = 0; e < N; e++) x.value[e] = e < count ? x.value[e] : from_f32<T>(beyond);
    }
    /* visit(value, k, e) for the packs that are there; values are floats. */
    template <typename V>
    __device__ __forceinline__ void each(int64_t begin, int64_t count, V visit) const {
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (index(begin, k) >= count) continue;
            float x[N];
            unpack(of[k], x);
#pragma unroll
            for (int e = 0; e < N; e++) visit(x[e], k, e);
        }
    }
};

/* Rows of the warps of all blocks, one after the other; r is -1 when there are no more. */
__device__ __forceinline__ int64_t first_row() { return (int64_t)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP; }
__device__ __forceinline__ int64_t row_step() { return (int64_t)gridDim.x * (THREADS / WARP); }

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    softmax_rows(const T *scores, int64_t rows, int64_t size, float *statistics) {
    using part = row_part<T, N>;
    for (int64_t r = first_row(); r < rows; r += row_step()) {
        const int64_t count = r % size + 1;
        softmax_state s = softmax_empty();
        for (int64_t begin = 0; begin < count; begin += part::SIZE) {
            part x;
            x.load_scores(scores + r * size, begin, count);
            float most = -FLT_MAX;
            x.each(begin, count, [&](float value, int, int) { most = fmaxf(most, value); });
            const float max = fmaxf(s.max, most);
            s.sum *= term_of(s.max, max);
            s.max = max;
            x.each(begin, count, [&](float value, int, int) { s.sum += term_of(value, max); });
        }
        const float max = warp_max_ordered(s.max);
        s = {max, warp_sum(s.sum * term_of(s.max, max))};
        if (threadIdx.x % WARP == 0)
            statistics[2 * r] = s.max, statistics[2 * r + 1] = s.sum == 0.0f ? 0.0f : 1.0f / s.sum;
    }
}

/* What find_threshold asks for: all members of a row are a warp's. */
struct of_a_warp {
    __device__ __forceinline__ simplex::members all(simplex::members own, simplex::members) const {
        return simplex::warp_merge(own);
    }
};

template <int N>
__global__ void __launch_bounds__(THREADS)
    sparsemax_rows(const float *scores, int64_t rows, int64_t size, float *statistics) {
    using part = row_part<float, N>;
    for (int64_t r = first_row(); r < rows; r += row_step()) {
        const int64_t count = r % size + 1;
        const float *const row = scores + r * size;
        part x;
        const auto walk = [&](auto visit) {
            for (int64_t begin = 0; begin < count; begin += part::SIZE) {
                if (count > part::SIZE || begin > 0) x.load_scores(row, begin, count);
                x.each(begin, count, visit);
            }
        };
        x.load_scores(row, 0, count);
        simplex::maximum own = simplex::no_maximum();
        walk([&](float value, int, int) { own.take(value); });
        const float max = simplex::warp_merge(own).max();
        float above = max < 0.0f ? INFINITY : NAN, more = max < 0.0f ? 0.0f : NAN;
        if (fabsf(max) < INFINITY) {
            of_a_warp again;
            const auto members_above = [&](float limit, float origin) {
                simplex::thread_members found;
                walk([&](float value, int, int) {
                    if (value > limit) found.add(value - origin);
                });
                return found.all();
            };
            const simplex::threshold tau =
                simplex::find_threshold(max, simplex::start_below(max, own.max()), members_above, again);
            above = tau.above;
            more = fabsf(max) >= MTA_SHARES
                       ? tau.rest
                       : (float)(((double)tau.origin - (double)tau.above) + (double)tau.rest + (double)tau.lower);
        }
        if (threadIdx.x % WARP == 0) statistics[2 * r] = above, statistics[2 * r + 1] = more;
    }
}

/* dP, in the place of dscores and 0 beyond the diagonal, becomes dscores: a row that one part holds is read once. */
template <typename T, source_kind KIND, int N>
__global__ void __launch_bounds__(THREADS)
    backward_rows(const T *scores, const float *statistics, int64_t rows, int64_t size, T *dscores) {
    using part = row_part<T, N>;
    for (int64_t r = first_row(); r < rows; r += row_step()) {
        const int64_t count = r % size + 1;
        const T *const row = scores + r * size;
        T *const dx = dscores + r * size;
        const row_of_p<KIND> p(statistics, r);
        const bool nothing = KIND == SOFTMAX && p.second == 0.0f, one = count <= part::SIZE;
        float sum = 0.0f, members = 0.0f;
        part x, d;
        for (int64_t begin = 0; begin < count; begin += part::SIZE) {
            x.load_scores(row, begin, count);
            d.load(dx, begin, count);
            x.each(begin, count, [&](float value, int k, int e) {
                const float dp = to_f32(d.of[k].value[e]);
                if constexpr (KIND == SOFTMAX) sum += p.of(value) * dp;
                else if (p.member(value)) sum += dp, members += 1.0f;
            });
        }
        sum = warp_sum(sum);
        if constexpr (KIND == SPARSEMAX) {
            const float found = warp_sum(members);
            sum /= isnan(p.first) ? (float)count : found; /* all, and nothing beyond the diagonal */
        }
        for (int64_t begin = 0; begin < size; begin += part::SIZE) {
            if (!one && begin < count) x.load_scores(row, begin, count), d.load(dx, begin, count);
#pragma unroll
            for (int k = 0; k < HELD; k++) {
                const int64_t i = part::index(begin, k);
                if (i >= size) continue;
                pack<T, N> made = {};
                if (i < count && !nothing) {
                    float value[N], out[N];
                    unpack(x.of[k], value);
                    unpack(d.of[k], out);
#pragma unroll
                    for (int e = 0; e < N; e++) {
                        if constexpr (KIND == SOFTMAX) out[e] = p.of(value[e]) * (out[e] - sum);
                        else out[e] = p.member(value[e]) ? out[e] - sum : 0.0f;
                    }
                    repack(out, made);
                    if (i + N > count) part::cut(made, (int)(count - i), 0.0f); /* 0 times a sum may be NaN, or -0 */
                }
                store_pack<T, N>(dx + i, made);
            }
        }
    }
}

/* ---- place by place ------------------------------------------------------------------------------------------------ */

/* Which input meets tap `u` of the output at i. Transposed: which output of forward; -1: none. */
__device__ __forceinline__ int64_t place(const mta_shape &s, int dimension, bool transposed, int64_t i, int64_t u) {
    const int64_t shift = u * s.dilation[dimension] - s.padding[dimension], stride = s.stride[dimension];
    if (!transposed) return i * stride + shift;
    return i - shift < 0 || (i - shift) % stride ? -1 : (i - shift) / stride;
}

/* spills allowed: correlate_places: a division of 64 bits is a call; only what has strides or dilations comes here */
template <typename T, source_kind KIND>
__global__ void __launch_bounds__(THREADS) correlate_places(const __grid_constant__ correlation<T> c, int64_t rows) {
    const int64_t size = c.shape.size, kh = c.shape.kernel[0], kw = c.shape.kernel[1];
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        const int64_t i = r % size, plane = r / size, channels = c.out_channels * c.shape.groups;
        group_place of = group_of(c, (unsigned)(plane % channels));
        of.in_plane += plane / channels * c.shape.groups * c.in_channels;
        for (int64_t j = threadIdx.x; j < size; j += THREADS) {
            float sum = 0.0f;
            for (int64_t k = 0; k < c.in_channels && j <= i; k++) {
                const int64_t first = c.taps_of(of.group, of.of_out, k);
                for (int64_t u = 0; u < kh; u++) {
                    const int64_t y = place(c.shape, 0, c.transposed, i, u);
                    for (int64_t v = 0; v < kw && y >= 0 && y < size; v++)
                        sum += load_as(c.weight, c.weight_dtype, first + u * kw + v) *
                               c.in.template at<KIND>(of.in_plane + k, y, place(c.shape, 1, c.transposed, j, v));
                }
            }
            c.out[r * size + j] = from_f32<T>(j <= i ? sum + c.bias_of(of.channel) : 0.0f);
        }
    }
}

/* Block (pair · chunks + chunk) · (taps + 1) + tap: the sum of one tap, or behind all taps that of dy, over every chunks-th strip. */
template <typename T, source_kind KIND>
__global__ void __launch_bounds__(THREADS)
    sum_places(const __grid_constant__ tap_sums q, const source<T> scores, const source<T> upstream, int64_t count) {
    __shared__ float slots[THREADS / WARP];
    const mta_shape &s = q.shape;
    const int64_t taps = s.kernel[0] * s.kernel[1], of_group = mta_in_of_group(&s), strips = mta_tile_rows(&s);
    for (int64_t item = blockIdx.x; item < count; item += gridDim.x) {
        const int64_t tap = item % (taps + 1), chunk = item / (taps + 1) % s.chunks,
                      pair = item / (taps + 1) / s.chunks;
        const int64_t out = pair / of_group, in = out / (s.out / s.groups) * of_group + pair % of_group;
        const bool plain = tap == taps;
        if (plain ? pair % of_group != 0 : !q.taps) continue;
        float sum = 0.0f;
        for (int64_t i = chunk; i < s.batch * strips; i += s.chunks)
            for (int64_t k = threadIdx.x / WARP; k < MTA_ROWS; k += THREADS / WARP) {
                const int64_t row = i % strips * MTA_ROWS + k, y = place(s, 0, false, row, tap / s.kernel[1]);
                for (int64_t col = threadIdx.x % WARP; row < s.size && col <= row; col += WARP) {
                    const float g = upstream.template at<AS_IT_IS>(i / strips * s.out + out, row, col);
                    const int64_t x = place(s, 1, false, col, tap % s.kernel[1]);
                    sum += plain ? g : g * scores.template at<KIND>(i / strips * s.in + in, y, x);
                }
            }
        sum = warp_sum(sum);
        __syncthreads();
        if (threadIdx.x % WARP == 0) slots[threadIdx.x / WARP] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            sum = 0.0f;
            for (int w = 0; w < THREADS / WARP; w++) sum += slots[w];
            q.parts[chunk * (mta_taps(&s) + s.out) + (plain ? mta_taps(&s) + out : pair * taps + tap)] = sum;
        }
    }
}

/* Element i of dweight and, behind it, dbias: the sum of its parts. */
__global__ void __launch_bounds__(THREADS) add_chunks(const float *parts, int64_t chunks, int64_t taps, int64_t outs,
                                                      liger_dtype dtype, void *dweight, void *dbias) {
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < taps + outs; i += (int64_t)gridDim.x * THREADS) {
        void *const to = i < taps ? dweight : dbias;
        if (to == nullptr) continue;
        double sum = 0.0;
        for (int64_t k = 0; k < chunks; k++) sum += (double)parts[k * (taps + outs) + i];
        store_as(to, dtype, i < taps ? i : i - taps, (float)sum);
    }
}

/* ---- launches ------------------------------------------------------------------------------------------------------ */

/* Where a grid of all tiles would be too large, and of nothing but planes that are a few elements, it is place by place. */
static bool fits_grid(const mta_shape &s, int64_t planes) { return planes <= INT32_MAX && s.size <= TILE << 15; }
static dim3 grid_of(const mta_shape &s, int64_t planes, int64_t side) {
    const int64_t tiles = (s.size + side - 1) / side;
    return dim3((unsigned)(tiles * tiles), grid_size(planes, 1, 65535));
}

template <typename T, source_kind KIND>
static void correlate(const liger_context *context, const correlation<T> &c, cudaStream_t stream) {
    const mta_shape &s = c.shape;
    const int64_t planes = s.batch * s.groups * c.out_channels;
    const bool tiled = fits_grid(s, planes);
    if constexpr (sizeof(T) == 2) {
        const bool packed =
            s.size % pack_size<T> == 0 && pointer_is_packable(c.in.values) && pointer_is_packable(c.out);
        constexpr liger_dtype own = std::is_same_v<T, f16> ? LIGER_F16 : LIGER_BF16;
        if (tiled && fits_tensor_cores<T>(context, s) && c.weight_dtype == own && s.kernel[0] <= MOST_TAP_ROWS) {
            const dim3 grid = grid_of(s, planes, TILE);
            if (packed) correlate_tiles<T, KIND, true><<<grid, TENSOR_THREADS, 0, stream>>>(c, (unsigned)planes);
            else correlate_tiles<T, KIND, false><<<grid, TENSOR_THREADS, 0, stream>>>(c, (unsigned)planes);
            return;
        }
    }
    if (tiled && fits_window(s)) {
        correlate_windows<T, KIND><<<grid_of(s, planes, SIDE), WINDOW_THREADS, 0, stream>>>(c, (unsigned)planes);
    } else {
        correlate_places<T, KIND><<<grid_size(planes * s.size, 1), THREADS, 0, stream>>>(c, planes * s.size);
    }
}

template <typename T, int N>
static void measure(const multi_token_attention_forward_problem &p, cudaStream_t stream) {
    const int64_t rows = p.shape.batch * p.shape.in * p.shape.size;
    const unsigned blocks = grid_size(rows, THREADS / WARP);
    if (!p.shape.sparse)
        softmax_rows<T, N><<<blocks, THREADS, 0, stream>>>((const T *)p.scores, rows, p.shape.size, p.statistics);
    else if constexpr (sizeof(T) == sizeof(float))
        sparsemax_rows<N><<<blocks, THREADS, 0, stream>>>((const T *)p.scores, rows, p.shape.size, p.statistics);
}

template <typename T>
static void forward(const liger_context *context, const multi_token_attention_forward_problem &p, cudaStream_t stream) {
    const mta_shape &s = p.shape;
    const bool packed = s.size * sizeof(T) % PACK_BYTES == 0 && pointer_is_packable(p.scores);
    const correlation<T> c = {s,
                              {(const T *)p.scores, p.statistics, s.size},
                              p.weight,
                              p.bias,
                              p.weight_dtype,
                              (T *)p.y,
                              mta_in_of_group(&s),
                              s.out / s.groups,
                              false};
    if (packed) measure<T, pack_size<T>>(p, stream);
    else measure<T, 1>(p, stream);
    if (!s.sparse) correlate<T, SOFTMAX>(context, c, stream);
    else if constexpr (sizeof(T) == sizeof(float)) correlate<T, SPARSEMAX>(context, c, stream);
}

template <typename T, source_kind KIND>
static void sum_taps(const liger_context *context, const multi_token_attention_backward_problem &p,
                     cudaStream_t stream) {
    const mta_shape &s = p.shape;
    const source<T> scores = {(const T *)p.scores, p.statistics, s.size}, upstream = {(const T *)p.dy, nullptr, s.size};
    const tap_sums q = {s, p.workspace, p.dweight != nullptr, p.dbias != nullptr};
    const int64_t pairs = s.out * mta_in_of_group(&s), taps = s.kernel[0] * s.kernel[1], count = pairs * s.chunks;
    if constexpr (sizeof(T) == 2) {
        if (fits_tensor_cores<T>(context, s) && s.kernel[0] <= MOST_SUM_ROWS && count <= INT32_MAX &&
            s.size <= TILE << 15) {
            const bool packed =
                s.size % pack_size<T> == 0 && pointer_is_packable(p.scores) && pointer_is_packable(p.dy);
            if (packed) sum_tiles<T, KIND, true><<<(unsigned)count, TENSOR_THREADS, 0, stream>>>(q, scores, upstream);
            else sum_tiles<T, KIND, false><<<(unsigned)count, TENSOR_THREADS, 0, stream>>>(q, scores, upstream);
            return;
        }
    }
    if (fits_sums(s) && count <= INT32_MAX && s.size <= TILE << 15) {
        sum_windows<T, KIND><<<(unsigned)count, WINDOW_THREADS, 0, stream>>>(q, scores, upstream);
        return;
    }
    sum_places<T, KIND>
        <<<grid_size(count * (taps + 1), 1), THREADS, 0, stream>>>(q, scores, upstream, count * (taps + 1));
}

template <typename T, source_kind KIND>
static void backward(const liger_context *context, const multi_token_attention_backward_problem &p,
                     cudaStream_t stream) {
    const mta_shape &s = p.shape;
    if (p.dscores) {
        const correlation<T> c = {s,
                                  {(const T *)p.dy, nullptr, s.size},
                                  p.weight,
                                  nullptr,
                                  p.weight_dtype,
                                  (T *)p.dscores,
                                  s.out / s.groups,
                                  mta_in_of_group(&s),
                                  true};
        const int64_t rows = s.batch * s.in * s.size;
        const unsigned blocks = grid_size(rows, THREADS / WARP);
        const bool packed =
            s.size * sizeof(T) % PACK_BYTES == 0 && pointer_is_packable(p.scores) && pointer_is_packable(p.dscores);
        correlate<T, AS_IT_IS>(context, c, stream);
        if (packed)
            backward_rows<T, KIND, pack_size<T>>
                <<<blocks, THREADS, 0, stream>>>((const T *)p.scores, p.statistics, rows, s.size, (T *)p.dscores);
        else
            backward_rows<T, KIND, 1>
                <<<blocks, THREADS, 0, stream>>>((const T *)p.scores, p.statistics, rows, s.size, (T *)p.dscores);
    }
    if (p.dweight == nullptr && p.dbias == nullptr) return;
    sum_taps<T, KIND>(context, p, stream);
    const int64_t elements = mta_taps(&s) + s.out;
    add_chunks<<<grid_size(elements, THREADS), THREADS, 0, stream>>>(p.workspace, s.chunks, mta_taps(&s), s.out,
                                                                     p.weight_dtype, p.dweight, p.dbias);
}

} // namespace mta

extern "C" liger_status multi_token_attention_forward_cuda(liger_context *context,
                                                           const multi_token_attention_forward_problem *problem,
                                                           liger_stream stream) {
    const multi_token_attention_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "multi_token_attention_forward");
    LIGER_FOR_FLOAT(p.dtype, T, mta::forward<T>(context, p, (cudaStream_t)stream))
    return launched(context, "multi_token_attention_forward", stream);
}

extern "C" liger_status multi_token_attention_backward_cuda(liger_context *context,
                                                            const multi_token_attention_backward_problem *problem,
                                                            liger_stream stream) {
    const multi_token_attention_backward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "multi_token_attention_backward");
    if (p.shape.sparse) mta::backward<float, mta::SPARSEMAX>(context, p, (cudaStream_t)stream);
    else LIGER_FOR_FLOAT(p.dtype, T, mta::backward<T, mta::SOFTMAX>(context, p, (cudaStream_t)stream))
    return launched(context, "multi_token_attention_backward", stream);
}
