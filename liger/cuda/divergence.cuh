/* divergence.cuh - the kernels of divergences: two matrices are read, and what is asked for is written, in one pass at the
 * speed of memory; then one block adds up what the others have found.
 *
 * A block does one tile (core/divergences.h): 16384 elements of a row, or whole rows of fewer, which threads share in rows of
 * their own. Every thread has 48 or 64 bytes on their way. Rows that do not begin at a boundary of 16 bytes do so
 * after a few elements, which are done one by one, as those behind the last pack; where the tensors of a call reach it at
 * different elements, all are done one by one.
 *
 * The formula F:
 *   F::BLOCKS<T>                      that a multiprocessor should hold: how many registers a thread may have
 *   F::problem                        has the divergence_problem `d`, and the options
 *   F::terms<N, EXACT>(p, x, y)       of N elements: x becomes their slopes, y their values. Not EXACT: x is of 16 bits, and
 *                                     so is what becomes of the slopes; memory leaves time for some 40 instructions an
 *                                     element, of which a logarithm of libm takes 22 */
#ifndef LIGER_CUDA_DIVERGENCE_CUH
#define LIGER_CUDA_DIVERGENCE_CUH

#include "liger/core/divergences.h"
#include "liger/cuda/approx.cuh"
#include "liger/cuda/block_total.cuh"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/softmax_state.cuh"

namespace divergences {

enum { THREADS = 256, ONE_BLOCK = 1024 };

/* What a kernel is for: single elements with an upstream or a value of their own, or sums alone; these also with the gradient
 * stored element by element, where it reaches a boundary of 16 bytes at another element than x does. That there is a gradient
 * so does not change the order of a sum. */
enum use { UNREDUCED, PACKS, PACKS_APART };

/* The part of a row that is in a tile. */
template <typename T, typename TY>
struct tile_row {
    const T *x;
    const TY *y;
    T *dx;                 /* or NULL */
    float *loss;           /* or NULL, as upstream */
    const float *upstream; /* one for each element */
    float share;           /* with the upstream, if that is one number */
};

/* N elements from the i-th on; returns the sum of their values. */
template <typename F, typename T, typename TY, use HOW, int N>
__device__ __forceinline__ float do_pack(const typename F::problem &p, const tile_row<T, TY> &row, int i,
                                         const pack<T, N> &x, const pack<TY, N> &y) {
    float slope[N], value[N], sum = 0.0f;
    unpack(x, slope);
    unpack(y, value);
    F::template terms<N, sizeof(T) == sizeof(float)>(p, slope, value);
#pragma unroll
    for (int k = 0; k < N; k++) sum += value[k];
#pragma unroll
    for (int k = 0; k < N; k++) slope[k] *= row.share;
    if constexpr (HOW == UNREDUCED) {
        if (row.loss) {
            pack<float, N> out;
            repack(value, out);
            store_pack<float, N>(row.loss + i, out);
        }
        if (row.upstream) {
            float up[N];
            unpack(load_pack<float, N>(row.upstream + i), up);
#pragma unroll
            for (int k = 0; k < N; k++) slope[k] *= up[k];
        }
    }
    if (row.dx) {
        pack<T, N> out;
        repack(slope, out);
        if constexpr (HOW == PACKS_APART) store_each(row.dx + i, out);
        else store_pack<T, N>(row.dx + i, out);
    }
    return sum;
}

template <typename F, typename T, typename TY, use HOW>
__device__ __forceinline__ float do_one(const typename F::problem &p, const tile_row<T, TY> &row, int i) {
    return do_pack<F, T, TY, HOW, 1>(p, row, i, load_pack<T, 1>(row.x + i), load_pack<TY, 1>(row.y + i));
}

/* Where a thread begins among those that share a row, and how many they are. */
struct place {
    int lane, lanes;
};

template <typename F, typename T, typename TY, use HOW, int N>
__device__ __forceinline__ float do_row(const typename F::problem &p, const tile_row<T, TY> &row, int count, place at) {
    enum { AHEAD = N == 1 ? 4 : HOW == UNREDUCED || sizeof(TY) > sizeof(T) ? 1 : 2 };
    const int head = N == 1 ? 0 : (int)to_boundary(row.x, count), packs = (count - head) / N;
    float sum = 0.0f;
    for (int v = at.lane; v < packs; v += AHEAD * at.lanes) {
        pack<T, N> x[AHEAD];
        pack<TY, N> y[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            if (v + u * at.lanes >= packs) continue;
            x[u] = load_pack<T, N>(row.x + head + (v + u * at.lanes) * N);
            y[u] = load_pack<TY, N>(row.y + head + (v + u * at.lanes) * N);
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++)
            if (v + u * at.lanes < packs)
                sum += do_pack<F, T, TY, HOW, N>(p, row, head + (v + u * at.lanes) * N, x[u], y[u]);
    }
    if constexpr (N > 1) { /* what is in front of them, and behind them */
        const int single = count - packs * N;
        for (int k = at.lane; k < single; k += at.lanes)
            sum += do_one<F, T, TY, HOW>(p, row, k < head ? k : packs * N + k);
    }
    return sum;
}

template <typename T>
__device__ __forceinline__ T *part_of(liger_rows rows, int64_t r, int64_t first) {
    return rows.data ? row_at<T>(rows, r) + first : nullptr;
}

template <typename T>
__device__ __forceinline__ void fill_zero(T *to, int count, place at) {
    for (int i = at.lane; to && i < count; i += at.lanes) to[i] = from_f32<T>(0.0f);
}

/* The block's part of the sum, of which every thread gets it. `lanes` threads, a power of two, share a row. */
template <typename F, typename T, typename TY, use HOW, int N>
__device__ __forceinline__ float do_tile(const typename F::problem &p, int64_t tile, int lanes) {
    const divergence_problem &d = p.d;
    /* 2^32 tiles are more than a device has memory for, and a division of 64 bits would take a tenth of a tile's time. */
    const int64_t group = (uint32_t)tile / (uint32_t)d.tiles.across;
    const int64_t first = (tile - group * d.tiles.across) * DIVERGENCE_TILE;
    const int64_t begin = group * d.tiles.rows, end = min(begin + d.tiles.rows, d.rows);
    const int count = (int)min(d.cols - first, (int64_t)DIVERGENCE_TILE);
    const place at = {(int)threadIdx.x & (lanes - 1), lanes};
    const float share = divergence_share(&d);
    float sum = 0.0f;
    for (int64_t r = begin + threadIdx.x / lanes; r < end; r += THREADS / lanes) {
        tile_row<T, TY> row = {row_at<const T>(d.x, r) + first,
                               row_at<const TY>(d.y, r) + first,
                               part_of<T>(d.dx, r, first),
                               HOW == UNREDUCED ? part_of<float>(d.loss, r, first) : nullptr,
                               nullptr,
                               share};
        if (d.labels && index_at(d.labels, d.label_dtype, r) == d.ignore_index) {
            fill_zero(row.dx, count, at);
            if (HOW == UNREDUCED) fill_zero(row.loss, count, at);
            continue;
        }
        if (d.upstream.data) {
            const float *up = row_at<const float>(d.upstream, r);
            if (HOW == UNREDUCED && d.upstream_step) row.upstream = up + first;
            else row.share *= *up;
        }
        sum += do_row<F, T, TY, HOW, N>(p, row, count, at);
    }
    return block_total(sum);
}

template <typename F, typename T, typename TY, use HOW, int N>
__global__ void __launch_bounds__(THREADS, at_most_blocks(HOW == PACKS_APART ? 2 : F::template BLOCKS<T>, THREADS))
    tiles_kernel(const __grid_constant__ typename F::problem p, int lanes) {
    for (int64_t tile = blockIdx.x; tile < p.d.tiles.count; tile += gridDim.x) {
        const float sum = do_tile<F, T, TY, HOW, N>(p, tile, lanes);
        if (threadIdx.x == 0) p.d.partials[tile] = sum;
    }
    let_next_kernel_start();
}

static __global__ void __launch_bounds__(ONE_BLOCK) total_kernel(const divergence_problem d) {
    float sum = 0.0f;
    wait_for_previous_kernel();
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < d.tiles.count; i += ONE_BLOCK) sum += d.partials[i];
    sum = block_total(sum);
    if (threadIdx.x == 0) store_as(d.total, d.loss_dtype, 0, sum * divergence_share(&d));
}

/* Do rows reach a boundary of 16 bytes at an element at which those of x do? */
static bool are_alike(liger_rows x, size_t x_element, liger_rows other, size_t element) {
    const int64_t period = PACK_BYTES / (int64_t)element;
    const int64_t apart = (int64_t)((uintptr_t)x.data / x_element) - (int64_t)((uintptr_t)other.data / element);
    return other.data == nullptr || (apart % period == 0 && (x.inner_stride - other.inner_stride) % period == 0 &&
                                     (x.outer_stride - other.outer_stride) % period == 0);
}

static bool packable(const divergence_problem &d) {
    const size_t element = liger_dtype_size(d.dtype);
    const liger_rows upstream = d.upstream_step ? d.upstream : liger_rows{};
    return are_alike(d.x, element, d.y, liger_dtype_size(d.y_dtype)) &&
           are_alike(d.x, element, d.loss, sizeof(float)) && are_alike(d.x, element, upstream, sizeof(float));
}

template <typename F, typename T, typename TY>
void launch_tiles(const typename F::problem &p, cudaStream_t stream) {
    const bool alike = are_alike(p.d.x, sizeof(T), p.d.dx, sizeof(T)), reduced = !divergence_is_unreduced(&p.d);
    const bool packs = packable(p.d) && (reduced || alike);
    const unsigned grid = grid_size(p.d.tiles.count, 1);
    int lanes = THREADS; /* narrow rows share a block */
    while (lanes > 1 && (int64_t)(lanes / 2) * (packs ? pack_size<T> : 1) >= p.d.cols) lanes /= 2;
    constexpr int N = pack_size<T>;
    if (!packs) tiles_kernel<F, T, TY, UNREDUCED, 1><<<grid, THREADS, 0, stream>>>(p, lanes);
    else if (!reduced) tiles_kernel<F, T, TY, UNREDUCED, N><<<grid, THREADS, 0, stream>>>(p, lanes);
    else if (alike) tiles_kernel<F, T, TY, PACKS, N><<<grid, THREADS, 0, stream>>>(p, lanes);
    else tiles_kernel<F, T, TY, PACKS_APART, N><<<grid, THREADS, 0, stream>>>(p, lanes);
}

template <typename F>
liger_status run(const liger_context *context, const typename F::problem &p, const char *op, liger_stream stream) {
    LIGER_ON_DEVICE(context, op);
    if (p.d.tiles.count > 0)
        LIGER_FOR_FLOAT_AND_WEIGHT(p.d.dtype, p.d.y_dtype, T, TY, launch_tiles<F, T, TY>(p, (cudaStream_t)stream))
    LIGER_TRY(launched(context, op, stream));
    if (p.d.total == nullptr) return LIGER_OK;
    LIGER_TRY(cuda_status(launch_next(context, total_kernel, dim3(1), dim3(ONE_BLOCK), (cudaStream_t)stream, p.d), op));
    return launched(context, op, stream);
}

} // namespace divergences

#endif
