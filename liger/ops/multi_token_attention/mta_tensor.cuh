/* mta_tensor.cuh - multi-token attention on tensor cores: 16-bit planes, no stride or dilation, at most 9 columns of taps.
 *
 * Of 8 neighbouring outputs of a row 9 taps see 16 inputs: one row of taps is a band of a 16 x 8 matrix, and 16 rows of 8
 * outputs are one m16n8k16 for each row of taps, 288 operations an output for the 162 of 9 x 9 taps. A block has 64 x 64
 * outputs; its window of inputs lies in shared memory, as T, from the column on that the first tap of the first output meets,
 * so that each matrix of 8 x 8 begins at 16 bytes; a warp has 16 rows. A matrix serves the outputs to the left and to the
 * right of it: 4.5 loads of four matrices for 8 products.
 *
 * dweight turns the same products around: 16 columns of P times 8 of dy, summed over the rows, have the sums of all taps of a
 * row on their diagonals. A warp keeps them in registers over all its tiles, one product's worth for each row of taps.
 *
 * Bench shape, 2 x 32 planes of 2048 x 2048, 9 x 9 taps, bf16: 34000 tiles of 648 clocks of shared memory for the products and
 * some 250 for the window, 360 of exponentials, on 132 multiprocessors .13 ms; memory: half of scores, all of y: .8 GB, .19 ms.
 * Backward's dP moves half of dy and half of dscores, .13 ms, dweight half of scores and dy, as much, both with as many
 * products. */
#ifndef LIGER_OPS_MTA_TENSOR_CUH
#define LIGER_OPS_MTA_TENSOR_CUH

#include "liger/cuda/copy_async.cuh"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/matrices.cuh"
#include "liger/ops/multi_token_attention/mta_source.cuh"

namespace mta {

enum { TILE = 64, BAND = 8, PITCH = TILE + BAND, TENSOR_THREADS = 128, TENSOR_WARPS = TENSOR_THREADS / WARP };
enum { WARP_ROWS = TILE / TENSOR_WARPS, BLOCKS = TILE / BAND };
enum { MOST_TAP_ROWS = 17, MOST_SUM_ROWS = 9, MOST_TAP_COLS = 9 };

template <typename T>
static bool fits_tensor_cores(const liger_context *context, const mta_shape &s) {
    return sizeof(T) == 2 && is_compiled_for(context, 80) && s.stride[0] == 1 && s.stride[1] == 1 &&
           s.dilation[0] == 1 && s.dilation[1] == 1 && s.kernel[1] <= MOST_TAP_COLS;
}

/* ---- windows ------------------------------------------------------------------------------------------------------- */

/* Where the packs of a window come from: rows from `row` on, columns from `col` on, of which the first pack has the one that is
 * `lead` behind its own first. */
struct window_place {
    int row, col, rows, cols;
    static constexpr int N = PACK_BYTES / 2, PACKS = PITCH / N + 1;

    __device__ __forceinline__ int lead() const { return col & (N - 1); }
    /* All of it in the plane, and up to the diagonal. */
    __device__ __forceinline__ bool is_causal(int size) const {
        return row >= 0 && row + rows <= size && col - lead() >= 0 && col - lead() + PACKS * N - 1 <= row;
    }
    /* visit(item, its row and first column in the window, the same in the plane) for this thread's packs. */
    template <int AT_ONCE, typename V>
    __device__ __forceinline__ void each(V visit) const {
#pragma unroll AT_ONCE
        for (int item = threadIdx.x; item < rows * PACKS; item += TENSOR_THREADS) {
            const int r = item / PACKS, to = (item - r * PACKS) * N - lead();
            if (to < cols) visit(item, r, to, row + r, col + to);
        }
    }
};
__device__ __forceinline__ bool has_causal(int size, int i, int j) { return i >= 0 && i < size && j >= 0 && j <= i; }

/* The packs of a window as they lie in memory, and the numbers of their rows. */
template <typename T, int ROWS>
struct raw_window {
    pack<T, window_place::N> packs[ROWS * window_place::PACKS];
    float statistics[2 * ROWS];

    /* In the background; nobody may still read what was here. */
    template <source_kind KIND>
    __device__ __forceinline__ void fetch(const source<T> &in, int64_t plane, const window_place &at) {
        const int size = (int)in.size;
        const T *const values = in.values + plane * size * size;
        at.each<1>([&](int item, int, int, int i, int j) {
            if (has_causal(size, i, j)) copy_async(packs + item, values + (int64_t)i * size + j);
        });
        if constexpr (KIND != AS_IT_IS) {
            const float *const of_rows = in.statistics + 2 * (plane * size + at.row);
            for (int k = threadIdx.x; k < 2 * at.rows; k += TENSOR_THREADS)
                if (at.row + k / 2 >= 0 && at.row + k / 2 < size) copy_async_word(statistics + k, of_rows + k);
        }
    }
    /* After copy_wait() of all threads. */
    template <source_kind KIND>
    __device__ __forceinline__ void make(int size, const window_place &at, T *window) const {
        if (at.is_causal(size)) make_of<KIND, true>(size, at, window);
        else make_of<KIND, false>(size, at, window);
    }
    template <source_kind KIND, bool CAUSAL>
    __device__ __forceinline__ void make_of(int size, const window_place &at, T *window) const {
        constexpr int N = window_place::N;
        const bool halves = at.lead() % 4 == 0;
        at.each<2>([&](int item, int r, int to, int i, int j) {
            pack<T, N> out = {};
            if (CAUSAL && KIND == AS_IT_IS) {
                out = packs[item];
            } else if (CAUSAL || has_causal(size, i, j)) {
                const row_of_p<KIND> p(statistics, r);
                float x[N];
                unpack(packs[item], x);
#pragma unroll
                for (int e = 0; e < N; e++) x[e] = CAUSAL || j + e <= i ? p.of(x[e]) : 0.0f;
                repack(x, out);
            }
            T *const own = window + r * PITCH + to;
            if (halves) {
                const uint2 *const half = (const uint2 *)&out;
                if (to >= 0) *(uint2 *)own = half[0];
                if (to + 4 < PITCH) *(uint2 *)(own + 4) = half[1];
            } else {
#pragma unroll
                for (int e = 0; e < N; e++)
                    if (to + e >= 0 && to + e < PITCH) own[e] = out.value[e];
            }
        });
    }
};

/* Where rows do not begin at 16 bytes. */
template <typename T, source_kind KIND>
__device__ __forceinline__ void load_window(const source<T> &in, int64_t plane, const window_place &at, T *window) {
#pragma unroll 4
    for (int item = threadIdx.x; item < at.rows * PITCH; item += TENSOR_THREADS) {
        const int r = item / PITCH, k = item - r * PITCH;
        window[item] = from_f32<T>(in.template at<KIND>(plane, at.row + r, at.col + k));
    }
}

/* ---- correlation: grid (tiles of a plane, planes) ------------------------------------------------------------------------- */

/* The bands of one pair of channels, as their lanes take them. */
template <typename T>
__device__ __forceinline__ void make_bands(const correlation<T> &c, const T *taps, uint2 *bands) {
    const int kh = (int)c.shape.kernel[0], kw = (int)c.shape.kernel[1], last = kh * kw - 1;
    for (int item = threadIdx.x; item < kh * WARP; item += TENSOR_THREADS) {
        const int u = item / WARP, lane = item % WARP;
        pack<T, 4> out;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int v = lane % 4 * 2 + e / 2 * 8 + e % 2 - lane / 4, k = u * kw + v;
            out.value[e] = v >= 0 && v < kw ? taps[c.transposed ? last - k : k] : from_f32<T>(0.0f);
        }
        bands[item] = *(const uint2 *)&out;
    }
}

template <typename T, bool PACKED>
__device__ __forceinline__ void write_zeros(T *out, int row, int col, int size) {
    constexpr int N = PACKED ? pack_size<T> : 1;
    const pack<T, N> zero = {};
    for (int item = threadIdx.x; item < TILE * TILE / N; item += TENSOR_THREADS) {
        const int i = row + item / (TILE / N), j = col + item % (TILE / N) * N;
        if (i < size && j < size) store_pack<T, N>(out + (int64_t)i * size + j, zero);
    }
}

/* On a multiprocessor: as many as have registers without spilling. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
template <bool PACKED>
constexpr int CORRELATE_BLOCKS = PACKED ? 6 : 4;
#else
template <bool>
constexpr int CORRELATE_BLOCKS = 4;
#endif

template <typename T, source_kind KIND, bool PACKED>
__global__ void __launch_bounds__(TENSOR_THREADS, at_most_blocks(CORRELATE_BLOCKS<PACKED>, TENSOR_THREADS))
    correlate_tiles(const __grid_constant__ correlation<T> c, unsigned planes) {
    using raw_type = raw_window<T, TILE + MOST_TAP_ROWS - 1>;
    static_assert(sizeof(raw_type) >= sizeof(T) * TILE * PITCH, "the results lie where the packs were");
    __shared__ __align__(16) T window[(TILE + MOST_TAP_ROWS - 1) * PITCH];
    __shared__ __align__(16) char bytes[sizeof(raw_type)];
    __shared__ uint2 bands[MOST_TAP_ROWS * WARP];
    raw_type &raw = *(raw_type *)bytes;
    T *const stage = (T *)bytes;
    const int size = (int)c.shape.size, kh = (int)c.shape.kernel[0], tiles = (size + TILE - 1) / TILE;
    const int lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * WARP_ROWS;
    const int row = (int)blockIdx.x / tiles * TILE, col = (int)blockIdx.x % tiles * TILE;
    const window_place at = {row - (int)c.shape.padding[0], col - (int)c.shape.padding[1], TILE + kh - 1, PITCH};
    for (unsigned plane = blockIdx.y; plane < planes; plane += gridDim.y) {
        T *const out = c.out + (int64_t)plane * size * size;
        if (col > row) {
            if (!c.transposed) write_zeros<T, PACKED>(out, row, col, size);
            continue;
        }
        const group_place of = group_of(c, plane);
        float sum[BLOCKS][4] = {};
        __syncthreads();
        if constexpr (PACKED) raw.template fetch<KIND>(c.in, of.in_plane, at);
        for (int64_t k = 0; k < c.in_channels; k++) {
            copy_wait();
            __syncthreads();
            if constexpr (PACKED) raw.template make<KIND>(size, at, window);
            else load_window<T, KIND>(c.in, of.in_plane + k, at, window);
            make_bands(c, (const T *)c.weight + c.taps_of(of.group, of.of_out, k), bands);
            __syncthreads();
            if constexpr (PACKED)
                if (k + 1 < c.in_channels) raw.template fetch<KIND>(c.in, of.in_plane + k + 1, at);
            const T *from = window + (warp_row + lane % 16) * PITCH + lane / 16 * BAND;
#pragma unroll 1
            for (int u = 0; u < kh; u++, from += PITCH) { /* other warps fill the time that its loads take */
                const uint2 band = bands[u * WARP + lane];
                uint32_t x[BLOCKS / 2][4], last[2];
#pragma unroll
                for (int j = 0; j < BLOCKS / 2; j++) load_matrices(from + j * 2 * BAND, x[j]);
                load_two_matrices(from + BLOCKS * BAND - lane / 16 * BAND, last);
#pragma unroll
                for (int j = 0; j < BLOCKS / 2; j++) {
                    const uint32_t *next = j + 1 < BLOCKS / 2 ? x[j + 1 < BLOCKS / 2 ? j + 1 : 0] : last;
                    add_product<T>(sum[2 * j], x[j][0], x[j][1], x[j][2], x[j][3], band.x, band.y);
                    add_product<T>(sum[2 * j + 1], x[j][2], x[j][3], next[0], next[1], band.x, band.y);
                }
            }
        }
        const float bias = c.bias_of(of.channel);
        T *const own = stage + warp_row * PITCH;
#pragma unroll
        for (int j = 0; j < BLOCKS; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int r = lane / 4 + half * 8, i = row + warp_row + r, at = j * BAND + lane % 4 * 2;
                const float two[2] = {col + at <= i ? sum[j][2 * half] + bias : 0.0f,
                                      col + at + 1 <= i ? sum[j][2 * half + 1] + bias : 0.0f};
                pack<T, 2> rounded;
                repack(two, rounded);
                store_pack<T, 2>(own + r * PITCH + at, rounded);
            }
        __syncwarp();
        constexpr int N = PACKED ? pack_size<T> : 1;
#pragma unroll 4
        for (int k = lane; k < WARP_ROWS * TILE / N; k += WARP) {
            const int r = k / (TILE / N), at = k % (TILE / N) * N;
            if (row + warp_row + r < size && col + at < size)
                store_pack<T, N>(out + (int64_t)(row + warp_row + r) * size + col + at,
                                 load_pack<T, N>(own + r * PITCH + at));
        }
        __syncwarp();
    }
}

/* ---- dweight and dbias --------------------------------------------------------------------------------------------- */

/* What a warp adds to the products of its 16 rows of a tile: sum[u] for the taps' row u. */
template <typename T>
__device__ __forceinline__ void add_tile(const T *window, const T *dy, int kh, float (&sum)[MOST_SUM_ROWS][4]) {
    const int lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * WARP_ROWS;
    const T *const from = window + (warp_row + lane % 16 + lane / 16) * PITCH; /* two rows of taps at once */
    const T *const upstream = dy + (warp_row + lane % 16) * PITCH + lane / 16 * BAND;
    uint32_t left[MOST_SUM_ROWS + 1][2], g[4];
#pragma unroll
    for (int u = 0; u < MOST_SUM_ROWS; u += 2) {
        uint32_t x[4];
        load_matrices<true>(from + u * PITCH, x);
        left[u][0] = x[0], left[u][1] = x[1], left[u + 1][0] = x[2], left[u + 1][1] = x[3];
    }
#pragma unroll
    for (int j = 0; j < BLOCKS; j++) {
        if (j % 2 == 0) load_matrices<true>(upstream + j * BAND, g);
        const uint32_t b0 = g[j % 2 * 2], b1 = g[j % 2 * 2 + 1];
#pragma unroll
        for (int u = 0; u < MOST_SUM_ROWS; u += 2) {
            uint32_t x[4];
            load_matrices<true>(from + u * PITCH + (j + 1) * BAND, x);
            if (u < kh) add_product<T>(sum[u], left[u][0], x[0], left[u][1], x[1], b0, b1);
            if (u + 1 < kh && u + 1 < MOST_SUM_ROWS)
                add_product<T>(sum[u + 1 < MOST_SUM_ROWS ? u + 1 : u], left[u + 1][0], x[2], left[u + 1][1], x[3], b0,
                               b1);
            left[u][0] = x[0], left[u][1] = x[1], left[u + 1][0] = x[2], left[u + 1][1] = x[3];
        }
    }
}

/* Block pair · chunks + chunk: every chunks-th tile, from the chunk-th on. */
template <typename T, source_kind KIND, bool PACKED>
__global__ void __launch_bounds__(TENSOR_THREADS, at_most_blocks(4, TENSOR_THREADS))
    sum_tiles(const __grid_constant__ tap_sums q, const source<T> scores, const source<T> upstream) {
    enum { WINDOW = (TILE + MOST_SUM_ROWS) * PITCH, PRODUCT = 16 * BAND, N = pack_size<T> };
    union memory {
        struct {
            T window[WINDOW], dy[TILE * PITCH];
            raw_window<T, TILE + MOST_SUM_ROWS - 1> raw;
            raw_window<T, TILE> raw_dy;
        } tile;
        float sums[TENSOR_WARPS][MOST_SUM_ROWS][PRODUCT];
    };
    __shared__ __align__(16) char bytes[sizeof(memory)];
    __shared__ float plain_of[TENSOR_WARPS];
    memory &m = *(memory *)bytes;
    const mta_shape &s = q.shape;
    const int size = (int)s.size, kh = (int)s.kernel[0], kw = (int)s.kernel[1], tiles = (size + TILE - 1) / TILE;
    const int64_t of_group = mta_in_of_group(&s), pair = blockIdx.x / s.chunks, chunk = blockIdx.x % s.chunks;
    const int64_t out = pair / of_group, in = out / (s.out / s.groups) * of_group + pair % of_group;
    const int64_t triangle = (int64_t)tiles * (tiles + 1) / 2;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float sum[MOST_SUM_ROWS][4] = {}, plain = 0.0f;
    const auto rows_of = [&](const tile_place &at) {
        return window_place{at.row - (int)s.padding[0], at.col - (int)s.padding[1], TILE + kh - 1, PITCH};
    };
    const auto fetch = [&](int64_t item) {
        if (!PACKED || item >= s.batch * triangle) return;
        const tile_place at = tile_of(item, triangle, TILE);
        m.tile.raw_dy.template fetch<AS_IT_IS>(upstream, at.sample * s.out + out, {at.row, at.col, TILE, TILE});
        if (q.taps) m.tile.raw.template fetch<KIND>(scores, at.sample * s.in + in, rows_of(at));
    };
    fetch(chunk);
    for (int64_t item = chunk; item < s.batch * triangle; item += s.chunks) {
        const tile_place at = tile_of(item, triangle, TILE);
        const window_place own = {at.row, at.col, TILE, TILE};
        copy_wait();
        __syncthreads();
        if constexpr (PACKED) {
            m.tile.raw_dy.template make<AS_IT_IS>(size, own, m.tile.dy);
            if (q.taps) m.tile.raw.template make<KIND>(size, rows_of(at), m.tile.window);
        } else {
            load_window<T, AS_IT_IS>(upstream, at.sample * s.out + out, own, m.tile.dy);
            if (q.taps) load_window<T, KIND>(scores, at.sample * s.in + in, rows_of(at), m.tile.window);
        }
        __syncthreads();
        fetch(item + s.chunks);
        for (int k = threadIdx.x; q.plain && k < TILE * TILE / N; k += TENSOR_THREADS) {
            float x[N];
            unpack(load_pack<T, N>(m.tile.dy + k / (TILE / N) * PITCH + k % (TILE / N) * N), x);
#pragma unroll
            for (int e = 0; e < N; e++) plain += x[e];
        }
        if (q.taps) add_tile(m.tile.window, m.tile.dy, kh, sum);
    }
    __syncthreads();
#pragma unroll
    for (int u = 0; u < MOST_SUM_ROWS; u++)
#pragma unroll
        for (int e = 0; e < 4; e++) m.sums[warp][u][(lane / 4 + e / 2 * 8) * BAND + lane % 4 * 2 + e % 2] = sum[u][e];
    plain = warp_sum(plain);
    if (lane == 0) plain_of[warp] = plain;
    __syncthreads();
    float *const part = q.parts + chunk * (mta_taps(&s) + s.out);
    for (int k = threadIdx.x; q.taps && k < kh * kw; k += TENSOR_THREADS) {
        float total = 0.0f;
        for (int w = 0; w < TENSOR_WARPS; w++)
#pragma unroll
            for (int n = 0; n < BAND; n++) total += m.sums[w][k / kw][(n + k % kw) * BAND + n];
        part[pair * kh * kw + k] = total;
    }
    if (threadIdx.x == 0 && pair % of_group == 0) {
        plain = 0.0f;
        for (int w = 0; w < TENSOR_WARPS; w++) plain += plain_of[w];
        part[mta_taps(&s) + out] = plain;
    }
}

} // namespace mta

#endif
