/* group_norm_cuda.cu - GroupNorm on the GPU.
 *
 * forward    a row (a group of one sample) of at most 32 KB is held in registers: one read, one write. Of a wider one many
 *            blocks measure a chunk each, a warp merges the chunks, and then every element is scaled, wherever it lies.
 * backward   sums over planes (a channel of one sample), spread over lanes, warps or blocks by their size; sums of those for
 *            the rows and, in order, for the parameters; then dx, element by element.
 *
 * Elements are done last first: what the kernel before has read last is still in the L2. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/divide.cuh"
#include "liger/cuda/moments.cuh"
#include "liger/cuda/row_norm_parts.cuh"
#include "liger/ops/group_norm/group_norm_problem.h"

namespace {

enum { THREADS = GROUP_NORM_THREADS, HELD_THREADS = 512, ELEMENT_PACKS = 2, WARPS = THREADS / WARP };
using row_norm::moments_share;

struct row_facts {
    float mean, shift, rstd; /* shift: what the rounding of the mean takes from every normal */
};
__device__ __forceinline__ row_facts facts_from(float mean, float missing, float variance, float epsilon) {
    const float rstd = 1.0f / sqrtf(variance + epsilon);
    return {mean, -missing * rstd, rstd};
}
__device__ __forceinline__ void keep(const group_norm_forward_problem &p, int64_t r, const row_facts &row) {
    if (!p.statistics) return;
    p.statistics[r] = row.mean;
    p.statistics[group_norm_rows(&p.shape) + r] = row.rstd;
}

/* ---- what an element becomes ------------------------------------------------------------------------------------ */

template <typename T>
struct forward {
    using type = T;
    using problem = group_norm_forward_problem;
    struct facts {
        row_facts row;
        float weight, bias;
    };
    template <int N>
    struct values {
        pack<T, N> x;
    };

    static __device__ __forceinline__ facts facts_of(const problem &p, const row_facts &row, int64_t c) {
        return {row, load_as(p.weight, p.weight_dtype, c), load_as(p.bias, p.weight_dtype, c)};
    }
    /* What is kept of a row stands behind the chunks. */
    static __device__ __forceinline__ facts facts_at(const problem &p, int64_t r, int64_t c) {
        const float *kept = p.workspace + 4 * p.cut.chunks * group_norm_rows(&p.shape) + 3 * r;
        return facts_of(p, {kept[0], kept[1], kept[2]}, c);
    }
    template <int N>
    static __device__ __forceinline__ values<N> load(const problem &p, int64_t i) {
        return {load_pack<T, N>((const T *)p.x + i)};
    }
    template <int N>
    static __device__ __forceinline__ float value(const facts &f, const values<N> &v, int k) {
        return fmaf(fmaf(to_f32(v.x.value[k]) - f.row.mean, f.row.rstd, f.row.shift), f.weight, f.bias);
    }
    static __device__ __forceinline__ T *to(const problem &p) { return (T *)p.y; }
};

/* Backward's workspace: sums over planes, of dy and of its product with the normal; the same over the samples of a partial
 * sum; both means of each row. */
__device__ __forceinline__ int64_t planes_floats(const group_norm_backward_problem &p) {
    return p.shape.batch * p.cut.pieces * p.shape.channels;
}
__device__ __forceinline__ int64_t partial_floats(const group_norm_backward_problem &p) {
    return p.cut.batches * p.cut.pieces * p.shape.channels;
}
__device__ __forceinline__ float *means_of(const group_norm_backward_problem &p, int64_t r) {
    return p.workspace + 2 * (planes_floats(p) + partial_floats(p)) + 2 * r;
}

template <typename T>
struct backward {
    using type = T;
    using problem = group_norm_backward_problem;
    struct facts {
        float mean, rstd, of_g, of_product, weight;
    };
    template <int N>
    struct values {
        pack<T, N> dy, x;
    };

    static __device__ __forceinline__ facts facts_at(const problem &p, int64_t r, int64_t c) {
        const float *means = means_of(p, r);
        return {p.statistics[r], p.statistics[group_norm_rows(&p.shape) + r], means[0], means[1],
                load_as(p.weight, p.weight_dtype, c)};
    }
    template <int N>
    static __device__ __forceinline__ values<N> load(const problem &p, int64_t i) {
        return {load_pack<T, N>((const T *)p.dy + i), load_pack<T, N>((const T *)p.x + i)};
    }
    template <int N>
    static __device__ __forceinline__ float value(const facts &f, const values<N> &v, int k) {
        const float normal = (to_f32(v.x.value[k]) - f.mean) * f.rstd;
        return f.rstd * fmaf(-f.of_product, normal, to_f32(v.dy.value[k]) * f.weight - f.of_g);
    }
    static __device__ __forceinline__ T *to(const problem &p) { return (T *)p.dx; }
};

/* ---- element by element ----------------------------------------------------------------------------------------- */

/* Whole samples, of fewer elements than a divisor can take; or one plane, and then nothing is divided. */
struct slice {
    int64_t first, count, row, channel; /* of the first element */
    divisor spatial, per_group, channels;
};

/* `whole`: no pack has elements of two planes. */
template <typename BODY, int N>
__device__ __forceinline__ void write_elements(const typename BODY::problem &p, const slice &s, bool whole, int64_t i,
                                               const typename BODY::template values<N> &values) {
    typename BODY::facts facts = {};
    float out[N];
#pragma unroll
    for (int k = 0; k < N; k++) {
        if (k == 0 || !whole) {
            const unsigned plane = s.spatial.value ? quotient((unsigned)(i + k), s.spatial) : 0;
            const int64_t c = s.channel + plane - (int64_t)quotient(plane, s.channels) * s.channels.value;
            facts = BODY::facts_at(p, s.row + quotient(plane, s.per_group), c);
        }
        out[k] = BODY::template value<N>(facts, values, k);
    }
    pack<typename BODY::type, N> rounded;
    repack(out, rounded);
    store_whole_pack<typename BODY::type, N>(BODY::to(p) + s.first + i, rounded);
}

/* What is read here was there before the sums' kernels, of which the first is launched plainly (see launch_next()): only what they
 * found is waited for. */
template <typename BODY, int N>
__global__ void __launch_bounds__(THREADS)
    elements_kernel(const __grid_constant__ typename BODY::problem p, const __grid_constant__ slice s, bool whole) {
    const int64_t first = ((int64_t)(gridDim.x - 1 - blockIdx.x) * ELEMENT_PACKS * THREADS + threadIdx.x) * N;
    typename BODY::template values<N> values[ELEMENT_PACKS];
#pragma unroll
    for (int j = 0; j < ELEMENT_PACKS; j++)
        if (first + j * THREADS * N < s.count) values[j] = BODY::template load<N>(p, s.first + first + j * THREADS * N);
    wait_for_previous_kernel();
#pragma unroll
    for (int j = 0; j < ELEMENT_PACKS; j++)
        if (first + j * THREADS * N < s.count) write_elements<BODY, N>(p, s, whole, first + j * THREADS * N, values[j]);
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* Block (threads of a row, rows); NV packs per thread. */
template <typename T, int N, int NV>
__global__ void __launch_bounds__(HELD_THREADS, 2)
    held_kernel(const __grid_constant__ group_norm_forward_problem p, divisor spatial, bool whole) {
    using F = forward<T>;
    __shared__ moments_share slots[MAX_WARPS];
    const int64_t r = NV == 1 ? (int64_t)blockIdx.x * blockDim.y + threadIdx.y : blockIdx.x;
    if (r >= group_norm_rows(&p.shape)) return;
    const int cols = (int)group_norm_cols(&p.shape);
    const int64_t first = r * cols, channel = r % p.shape.groups * (p.shape.channels / p.shape.groups);
    const auto column = [&](int k) { return (int)(threadIdx.x + k * blockDim.x) * N; };
    typename F::template values<N> row[NV];
#pragma unroll
    for (int k = 0; k < NV; k++) row[k] = F::template load<N>(p, first + min(column(k), cols - N));
    const auto fold = [&](auto f) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < NV; k++) {
            float values[N];
            unpack(row[k].x, values);
            const float with = f(sum, values);
            sum = column(k) < cols ? with : sum;
        }
        return sum;
    };
    int packs = 0;
#pragma unroll
    for (int k = 0; k < NV; k++) packs += row_norm::warp_packs(cols / N, k * (int)blockDim.x);
    const row_norm::warp_values of = {__shfl_sync(0xffffffffu, to_f32(row[0].x.value[0]), 0), (float)(packs * N)};
    const row_norm::moments m =
        row_norm::moments_of(fold, of, 1.0f / (float)cols, slots, NV == 1 ? 1 : (int)blockDim.x / WARP);
    const row_facts kept = facts_from(m.mean, m.missing, m.variance, p.epsilon);
    if (threadIdx.x == 0) keep(p, r, kept);
#pragma unroll
    for (int k = 0; k < NV; k++) {
        if (column(k) >= cols) continue;
        typename F::facts facts = {};
        float out[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (i == 0 || !whole) facts = F::facts_of(p, kept, channel + quotient(column(k) + i, spatial));
            out[i] = F::template value<N>(facts, row[k], i);
        }
        pack<T, N> rounded;
        repack(out, rounded);
        store_pack<T, N>((T *)p.y + first + column(k), rounded);
    }
}

/* A block a chunk. It is read twice, the second time from the L1. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS) chunk_kernel(const __grid_constant__ group_norm_forward_problem p) {
    __shared__ moments_share slots[MAX_WARPS];
    let_next_kernel_start();
    const int64_t packs_of_row = group_norm_cols(&p.shape) / N, per = (packs_of_row + p.cut.chunks - 1) / p.cut.chunks;
    const int64_t begin = blockIdx.x % p.cut.chunks * per, left = packs_of_row - begin;
    const int packs = left < 0 ? 0 : left < per ? (int)left : (int)per;
    moments_share *to = (moments_share *)p.workspace + blockIdx.x;
    if (packs == 0) {
        if (threadIdx.x == 0) *to = {0, 0, 0, 0};
        return;
    }
    const T *x = (const T *)p.x + (blockIdx.x / p.cut.chunks * packs_of_row + begin) * N;
    const auto fold = [&](auto f) {
        float sum = 0;
#pragma unroll 4
        for (int c = threadIdx.x; c < packs; c += THREADS) {
            float values[N];
            unpack(load_pack<T, N>(x + (int64_t)c * N), values);
            sum = f(sum, values);
        }
        return sum;
    };
    const int lead = threadIdx.x / WARP * WARP,
              in_turn = packs / THREADS * WARP + row_norm::warp_packs(packs % THREADS, 0);
    const float count = (float)packs * N;
    const row_norm::warp_values of = {lead < packs ? to_f32(x[(int64_t)lead * N]) : 0.0f, (float)in_turn * N};
    const row_norm::moments m = row_norm::moments_of(fold, of, 1.0f / count, slots, WARPS);
    if (threadIdx.x == 0) *to = {m.mean, isfinite(m.mean) ? m.missing : 0.0f, m.variance * count, count};
}

/* A warp a row. */
__global__ void __launch_bounds__(THREADS) merge_kernel(const __grid_constant__ group_norm_forward_problem p) {
    const int64_t rows = group_norm_rows(&p.shape), r = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP, chunks = (int)p.cut.chunks;
    const float per_col = 1.0f / (float)group_norm_cols(&p.shape);
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (r >= rows) return;
    const moments_share *shares = (const moments_share *)p.workspace + r * chunks;
    const float origin =
        isfinite(shares[0].origin) ? shares[0].origin : 0.0f; /* an infinite value has an infinite mean */
    float sum = 0, squares = 0;
    for (int i = lane; i < chunks; i += WARP) sum += shares[i].count * ((shares[i].origin - origin) + shares[i].rest);
    const float rest = warp_sum(sum) * per_col, mean = origin + rest, missing = rest - (mean - origin);
    for (int i = lane; i < chunks; i += WARP) {
        const float apart = (shares[i].origin - origin) + shares[i].rest - rest;
        squares += fmaf(shares[i].count * apart, apart, shares[i].squares);
    }
    const row_facts kept = facts_from(mean, missing, warp_sum(squares) * per_col, p.epsilon);
    if (lane > 0) return;
    float *to = p.workspace + 4 * chunks * rows + 3 * r;
    to[0] = kept.mean, to[1] = kept.shift, to[2] = kept.rstd;
    keep(p, r, kept);
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* `lanes` threads sum a piece of a plane, of one sample after the other: a whole block, or at most a warp. */
template <typename T, int N, bool BLOCK>
__global__ void __launch_bounds__(THREADS) planes_kernel(const __grid_constant__ group_norm_backward_problem p) {
    __shared__ float slots[2][2][MAX_WARPS];
    const int64_t pieces = p.cut.pieces, channels = p.shape.channels, spatial = p.shape.spatial;
    const int64_t group = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, c = group / pieces % channels;
    const int64_t piece = group % pieces, start = group / pieces / channels;
    const int64_t per = (spatial / N + pieces - 1) / pieces * N, begin = piece * per;
    const int64_t end = begin + per < spatial ? begin + per : spatial;
    const bool live = start < p.cut.batches;
    float of_channel[2] = {};
    int phase = 0;
    let_next_kernel_start();
    for (int64_t round = 0; round * p.cut.batches < p.shape.batch; round++, phase ^= 1) {
        const int64_t b = start + round * p.cut.batches;
        const bool here = live && b < p.shape.batch;
        float sums[2] = {}, rstd = 0;
        if (here) {
            const int64_t r = b * p.shape.groups + c / (channels / p.shape.groups);
            const int64_t plane = (b * channels + c) * spatial;
            const float mean = p.statistics[r];
            rstd = p.statistics[group_norm_rows(&p.shape) + r];
#pragma unroll 4
            for (int64_t i = begin + (int64_t)threadIdx.x * N; i < end; i += blockDim.x * N) {
                float dy[N], x[N];
                unpack(load_pack<T, N>((const T *)p.dy + plane + i), dy);
                unpack(load_pack<T, N>((const T *)p.x + plane + i), x);
#pragma unroll
                for (int k = 0; k < N; k++) sums[0] += dy[k], sums[1] = fmaf(dy[k], x[k] - mean, sums[1]);
            }
        }
        if constexpr (BLOCK) {
            group_sums(sums, slots[phase], 0, WARPS);
        } else {
            for (int offset = blockDim.x / 2; offset > 0; offset /= 2)
                for (float &sum : sums) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        }
        sums[1] *= rstd;
        for (int k = 0; k < 2; k++) of_channel[k] += sums[k];
        float *to = p.workspace + (b * pieces + piece) * channels + c;
        if (here && threadIdx.x == 0) to[0] = sums[0], to[planes_floats(p)] = sums[1];
    }
    float *to = p.workspace + 2 * planes_floats(p) + (start * pieces + piece) * channels + c;
    if (live && threadIdx.x == 0) to[0] = of_channel[0], to[partial_floats(p)] = of_channel[1];
}

/* Block (x, y): 32 columns of dbias, of dweight, or the means of 32 rows, a warp each; of one, if they are large. */
__global__ void __launch_bounds__(1024) sums_kernel(const __grid_constant__ group_norm_backward_problem p, bool large) {
    __shared__ float sums[32][33];
    const float *planes = p.workspace, *partial = planes + 2 * planes_floats(p) + blockIdx.y * partial_floats(p);
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (blockIdx.y < 2) {
        void *const to = blockIdx.y == 0 ? p.dbias : p.dweight;
        if (to == NULL || (int64_t)blockIdx.x * 32 >= p.shape.channels) return;
        row_norm::add_partial_columns(sums, partial, (int)(p.cut.batches * p.cut.pieces), p.shape.channels, to,
                                      p.weight_dtype);
        return;
    }
    const int64_t per_group = p.shape.channels / p.shape.groups, entries = per_group * p.cut.pieces;
    const int64_t r = large ? blockIdx.x : (int64_t)blockIdx.x * 32 + threadIdx.y;
    const int64_t b = r / p.shape.groups, channel = r % p.shape.groups * per_group;
    const int thread = threadIdx.y * WARP + threadIdx.x, warp = threadIdx.y;
    if ((int64_t)blockIdx.x * (large ? 1 : 32) >= group_norm_rows(&p.shape)) return;
    float found[2] = {};
    for (int64_t i = large ? thread : threadIdx.x; b < p.shape.batch && i < entries; i += large ? 1024 : WARP) {
        const int64_t c = channel + i % per_group, at = (b * p.cut.pieces + i / per_group) * p.shape.channels + c;
        const float weight = load_as(p.weight, p.weight_dtype, c);
        for (int k = 0; k < 2; k++) found[k] = fmaf(weight, planes[k * planes_floats(p) + at], found[k]);
    }
    const float per_col = 1.0f / (float)group_norm_cols(&p.shape);
    for (int k = 0; k < 2; k++) {
        float total = warp_sum(found[k]);
        if (large) {
            if (threadIdx.x == 0) sums[k][warp] = total;
            __syncthreads();
            total = warp_sum(sums[k][threadIdx.x]);
        }
        if (threadIdx.x == 0 && b < p.shape.batch && (!large || warp == 0)) means_of(p, r)[k] = total * per_col;
    }
}

/* ---- launches --------------------------------------------------------------------------------------------------- */

template <typename BODY, int N>
cudaError_t launch_elements(const liger_context *context, const typename BODY::problem &p, cudaStream_t stream) {
    const struct group_norm_shape &s = p.shape;
    const int64_t sample = s.channels * s.spatial, per_group = s.channels / s.groups;
    const bool samples = sample < MOST_DIVIDENDS;
    const int64_t step = samples ? MOST_DIVIDENDS / sample * sample : s.spatial, all = s.batch * sample;
    const auto by = [&](int64_t value) { return divide_by(samples ? (unsigned)value : 0); };
    slice part = {0, 0, 0, 0, by(s.spatial), by(per_group), by(s.channels)};
    for (; part.first < all; part.first += step) {
        const int64_t plane = part.first / s.spatial;
        part.count = all - part.first < step ? all - part.first : step;
        part.row = plane / per_group, part.channel = plane % s.channels;
        const cudaError_t error = launch_next(context, elements_kernel<BODY, N>,
                                              dim3(grid_size(part.count, (int64_t)ELEMENT_PACKS * THREADS * N)),
                                              dim3(THREADS), stream, p, part, s.spatial % N == 0);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

/* The widest packs that no plane's end cuts; packs of 16 bytes all the same where rows have them, and elements else. */
template <typename BODY>
cudaError_t launch_widest(const liger_context *context, const typename BODY::problem &p, bool aligned,
                          cudaStream_t stream) {
    constexpr int N = pack_size<typename BODY::type>;
    const bool giant = p.shape.channels * p.shape.spatial >= MOST_DIVIDENDS;
    if (aligned && p.shape.spatial % N == 0) return launch_elements<BODY, N>(context, p, stream);
    if (aligned && p.shape.spatial % (N / 2) == 0) return launch_elements<BODY, N / 2>(context, p, stream);
    if (aligned && group_norm_cols(&p.shape) % N == 0 && !giant) return launch_elements<BODY, N>(context, p, stream);
    return launch_elements<BODY, 1>(context, p, stream);
}

template <typename T, int N>
void launch_held(const group_norm_forward_problem &p, cudaStream_t stream) {
    const int64_t rows = group_norm_rows(&p.shape), packs = group_norm_cols(&p.shape) / N;
    const int nv = packs <= WARP ? 1 : 4;
    const dim3 block(round_up_to_warp((packs + nv - 1) / nv), nv == 1 ? 8 : 1);
    const divisor spatial = divide_by((unsigned)p.shape.spatial);
    const bool whole = p.shape.spatial % N == 0;
    const unsigned grid = grid_size(rows, block.y);
    if (nv == 1) held_kernel<T, N, 1><<<grid, block, 0, stream>>>(p, spatial, whole);
    else held_kernel<T, N, 4><<<grid, block, 0, stream>>>(p, spatial, whole);
}

template <typename T>
cudaError_t launch_forward(const liger_context *context, const group_norm_forward_problem &p, cudaStream_t stream) {
    constexpr int N = pack_size<T>;
    const int64_t rows = group_norm_rows(&p.shape);
    const bool aligned = pointer_is_packable(p.x) && pointer_is_packable(p.y);
    const bool packable = aligned && group_norm_cols(&p.shape) % N == 0;
    if (p.cut.chunks == 1 && (packable || group_norm_cols(&p.shape) <= GROUP_NORM_HELD)) {
        if (packable) launch_held<T, N>(p, stream);
        else launch_held<T, 1>(p, stream);
        return cudaSuccess;
    }
    const unsigned grid = grid_size(rows * p.cut.chunks, 1);
    if (packable) chunk_kernel<T, N><<<grid, THREADS, 0, stream>>>(p);
    else chunk_kernel<T, 1><<<grid, THREADS, 0, stream>>>(p);
    const cudaError_t error =
        launch_next(context, merge_kernel, dim3(grid_size(rows, WARPS)), dim3(THREADS), stream, p);
    return error != cudaSuccess ? error : launch_widest<forward<T>>(context, p, aligned, stream);
}

template <typename T, int N>
void launch_planes(const group_norm_backward_problem &p, cudaStream_t stream) {
    const dim3 block(p.cut.lanes, THREADS / p.cut.lanes);
    const unsigned grid = grid_size(p.cut.batches * p.cut.pieces * p.shape.channels, block.y);
    if (p.cut.lanes == THREADS) planes_kernel<T, N, true><<<grid, block, 0, stream>>>(p);
    else planes_kernel<T, N, false><<<grid, block, 0, stream>>>(p);
}

template <typename T>
cudaError_t launch_backward(const liger_context *context, const group_norm_backward_problem &p, cudaStream_t stream) {
    constexpr int N = pack_size<T>;
    const bool aligned = pointer_is_packable(p.x) && pointer_is_packable(p.dy);
    const int64_t rows = group_norm_rows(&p.shape), entries = p.shape.channels / p.shape.groups * p.cut.pieces;
    const bool large = entries > 1024;
    if (aligned && p.shape.spatial % N == 0) launch_planes<T, N>(p, stream);
    else if (aligned && p.shape.spatial % (N / 2) == 0) launch_planes<T, N / 2>(p, stream);
    else launch_planes<T, 1>(p, stream);
    const unsigned columns = grid_size(p.shape.channels, 32), blocks = p.dx ? grid_size(rows, large ? 1 : 32) : 1;
    const dim3 grid(columns > blocks ? columns : blocks, p.dx ? 3 : 2);
    const cudaError_t error = launch_next(context, sums_kernel, grid, dim3(32, 32), stream, p, large);
    if (error != cudaSuccess || p.dx == NULL) return error;
    return launch_widest<backward<T>>(context, p, aligned && pointer_is_packable(p.dx), stream);
}

} // namespace

extern "C" liger_status group_norm_forward_cuda(liger_context *context, const group_norm_forward_problem *problem,
                                                liger_stream stream) {
    cudaError_t error = cudaSuccess;
    LIGER_ON_DEVICE(context, "group_norm_forward");
    LIGER_FOR_FLOAT(problem->dtype, T, error = launch_forward<T>(context, *problem, (cudaStream_t)stream));
    LIGER_TRY(cuda_status(error, "group_norm_forward"));
    return launched(context, "group_norm_forward", stream);
}

extern "C" liger_status group_norm_backward_cuda(liger_context *context, const group_norm_backward_problem *problem,
                                                 liger_stream stream) {
    cudaError_t error = cudaSuccess;
    LIGER_ON_DEVICE(context, "group_norm_backward");
    LIGER_FOR_FLOAT(problem->dtype, T, error = launch_backward<T>(context, *problem, (cudaStream_t)stream));
    LIGER_TRY(cuda_status(error, "group_norm_backward"));
    return launched(context, "group_norm_backward", stream);
}
