/* row_norm_forward.cuh - y from rows and their statistics; what a formula F brings stands in row_norm.cuh. */
#ifndef LIGER_CUDA_ROW_NORM_FORWARD_CUH
#define LIGER_CUDA_ROW_NORM_FORWARD_CUH

#include "liger/cuda/moments.cuh"
#include "liger/cuda/row_norm_parts.cuh"

namespace row_norm {

/* Of a block with a row in registers: threads, and packs of 16 bytes, at most. */
enum { FORWARD_BLOCK = 256, FORWARD_PACKS = 8 * FORWARD_BLOCK };
/* 64 registers a thread keep enough loads in flight; for more packs the formula says how many blocks they may cost. */
template <typename F, int NV>
constexpr int forward_blocks = NV == 8   ? F::EIGHT_PACKS_BLOCKS
                               : NV == 4 ? at_most_blocks(F::FOUR_PACKS_BLOCKS, FORWARD_BLOCK)
                                         : RESIDENT / FORWARD_BLOCK;

/* ---- statistics: one exchange between the warps of a row -------------------------------------------------------- */

/* What a formula may ask of a row, once: values() is asked for only where it is needed. */
template <int MOST_WARPS, typename FOLD, typename V, typename S>
struct row_statistics {
    const FOLD &fold;
    const V &values;
    S *slots;
    int warps;
    float per_col;

    template <typename TERM>
    __device__ __forceinline__ float of_thread(TERM term) const {
        return fold([&](float sum, const auto &x) {
            for (const float value : x) sum = term(sum, value);
            return sum;
        });
    }
    template <typename TERM>
    __device__ __forceinline__ float sum(TERM term) const {
        float total[1] = {of_thread(term)};
        group_sums(total, (float(*)[MAX_WARPS])slots, 0, warps, at_most_warps<MOST_WARPS>());
        return total[0];
    }
    /* Several, in one exchange. */
    template <typename... TERMS>
    __device__ __forceinline__ void sums(float (&total)[sizeof...(TERMS)], TERMS... terms) const {
        int i = 0;
        ((total[i++] = of_thread(terms)), ...);
        group_sums(total, (float(*)[MAX_WARPS])slots, 0, warps, at_most_warps<MOST_WARPS>());
    }
    __device__ __forceinline__ moments centred() const {
        return moments_of(fold, values(), per_col, slots, warps, at_most_warps<MOST_WARPS>());
    }
};
template <int MOST_THREADS, typename FOLD, typename V, typename S>
__device__ __forceinline__ row_statistics<MOST_THREADS / WARP, FOLD, V, S>
statistics_of(const FOLD &fold, const V &values, S *slots, int64_t cols) {
    return {fold, values, slots, (int)blockDim.x / WARP, 1.0f / (float)cols};
}

/* Whether all parameters are there, known when compiling. */
struct yes {
    static constexpr bool value = true;
};
struct no {
    static constexpr bool value = false;
};

/* ---- the row in registers --------------------------------------------------------------------------------------- */

/* sum = x + residual, rounded to T, in place of x. */
template <typename T, int N>
__device__ __forceinline__ void add(pack<T, N> &x, const pack<T, N> &residual) {
    float a[N], b[N];
    unpack(x, a);
    unpack(residual, b);
#pragma unroll
    for (int i = 0; i < N; i++) a[i] += b[i];
    repack(a, x);
}

/* Block (threads of a group, groups). A warp has neighbouring packs, NV to a lane: their distance is known when compiling. */
template <typename F, int NV>
__global__ void __launch_bounds__(FORWARD_BLOCK, forward_blocks<F, NV>)
    forward_registers(const __grid_constant__ typename F::problem p) {
    using T = typename F::type;
    constexpr int N = pack_size<T>;
    __shared__ typename F::shares slots[MAX_WARPS];
    /* One warp's groups share a block, and meet no barrier. Otherwise the row is the block's, and known to be: its addresses
     * are then computed once per warp. */
    const int64_t r = NV == 1 ? (int64_t)blockIdx.x * blockDim.y + threadIdx.y : blockIdx.x;
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (r >= p.rows) return;
    /* Behind the row's end a thread sums the last pack again and leaves it out: less than a branch for every pack. */
    const int cols = (int)p.cols, last = cols - N, warp = NV == 1 ? 0 : (int)threadIdx.x / WARP;
    const int first = (warp * NV * WARP + (int)threadIdx.x % WARP) * N;
    const auto column = [&](int k) { return first + k * WARP * N; };
    const auto within = [&](int k) { return min(column(k), last); };
    const T *x = row_at<T>(p.x, r);
    pack<T, N> row[NV];
#pragma unroll
    for (int k = 0; k < NV; k++) row[k] = load_pack<T, N>(x + within(k));
    if constexpr (F::ADDS) {
        const T *residual = row_at<T>(p.residual, r);
        T *sum = row_at<T>(p.sum, r);
        pack<T, N> other[NV];
#pragma unroll
        for (int k = 0; k < NV; k++) other[k] = load_pack<T, N>(residual + within(k));
#pragma unroll
        for (int k = 0; k < NV; k++) {
            add(row[k], other[k]);
            if (column(k) < cols) store_pack<T, N>(sum + column(k), row[k]);
        }
    }
    /* The parameters of the first pack are on their way while the row is reduced, the others' one pack ahead of their use;
     * where there are not the registers for it, they come when they are used. */
    typename F::template parameters<N> columns[NV];
    constexpr bool AHEAD = !F::WIDE && sizeof columns <= 64;
    const bool has_parameters = F::has_parameters(p);
    if (AHEAD && has_parameters) columns[0].load(p, r, within(0));
    const auto fold = [&](auto f) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < NV; k++) {
            float values[N];
            unpack(row[k], values);
            const float with = f(sum, values);
            sum = column(k) < cols ? with : sum;
        }
        return sum;
    };
    const auto values = [&] {
        const int packs = min(cols / N - warp * NV * WARP, NV * WARP);
        return warp_values{__shfl_sync(0xffffffffu, to_f32(row[0].value[0]), 0), (float)(packs * N)};
    };
    const auto statistics = F::measure(p, statistics_of<FORWARD_BLOCK>(fold, values, slots, cols));
    if (threadIdx.x == 0) F::keep(p, r, statistics);
    T *y = row_at<T>(p.y, r);
    const auto store_all = [&](auto complete) {
#pragma unroll
        for (int k = 0; k < NV; k++) {
            if (!AHEAD && column(k) >= cols) continue;
            if (!AHEAD && has_parameters) columns[k].load(p, r, column(k));
            if (AHEAD && has_parameters && k + 1 < NV) columns[k + 1].load(p, r, within(k + 1));
            float values[N];
            unpack(row[k], values);
            F::template apply<decltype(complete)::value>(p, statistics, columns[k], values);
            pack<T, N> out;
            repack(values, out);
            if (column(k) < cols) store_pack<T, N>(y + column(k), out);
        }
    };
    if (!F::WIDE && F::has_all_parameters(p)) store_all(yes());
    else store_all(no());
}

/* ---- rows of any width and alignment ---------------------------------------------------------------------------- */

template <typename F, int N>
__global__ void __launch_bounds__(BLOCK) forward_loop(const __grid_constant__ typename F::problem p) {
    using T = typename F::type;
    __shared__ typename F::shares slots[2][MAX_WARPS];
    int phase = 0;
    const int64_t packs = p.cols / N;
    const int64_t in_turn = packs / blockDim.x * WARP + warp_packs((int)(packs % blockDim.x), 0);
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x, phase ^= 1) {
        const T *x = row_at<T>(p.x, r), *row = x;
        bool adds = false, again = false;
        if constexpr (F::ADDS) adds = p.residual.data != NULL;
        if constexpr (F::ADDS) row = adds ? row_at<T>(p.sum, r) : x;
        const auto fold = [&](auto f) {
            float sum = 0;
            for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
                pack<T, N> held = again ? *(const pack<T, N> *)(row + c * N) : load_shared<T, N>(x + c * N);
                if constexpr (F::ADDS)
                    if (adds && !again) {
                        add(held, load_pack<T, N>(row_at<T>(p.residual, r) + c * N));
                        store_whole_pack<T, N>(row_at<T>(p.sum, r) + c * N, held);
                    }
                float values[N];
                unpack(held, values);
                sum = f(sum, values);
            }
            again = true;
            return sum;
        };
        const auto values = [&] {
            const int64_t c = threadIdx.x / WARP * WARP;
            return warp_values{c < packs ? to_f32(x[c * N]) : 0.0f, (float)(in_turn * N)};
        };
        const auto statistics = F::measure(p, statistics_of<BLOCK>(fold, values, slots[phase], p.cols));
        if (threadIdx.x == 0) F::keep(p, r, statistics);
        T *y = row_at<T>(p.y, r);
        for (int64_t c = threadIdx.x; c < packs; c += blockDim.x) {
            pack<T, N> out = *(const pack<T, N> *)(row + c * N);
            typename F::template parameters<N> columns;
            if (F::has_parameters(p)) columns.load(p, r, c * N);
            float values[N];
            unpack(out, values);
            F::template apply<false>(p, statistics, columns, values);
            repack(values, out);
            store_whole_pack<T, N>(y + c * N, out);
        }
    }
}

/* ---- launches --------------------------------------------------------------------------------------------------- */

/* May forward's rows be held in registers? */
template <typename T, typename P>
bool fits_registers(const P &p, bool packable) {
    return packable && p.cols / pack_size<T> <= FORWARD_PACKS && p.rows <= INT32_MAX;
}

/* Packs of a thread: the more, the fewer threads wait for each other, but each needs more registers. */
template <typename F>
void launch_forward_registers(const liger_context *context, const typename F::problem &p, cudaStream_t stream) {
    const int64_t packs = p.cols / pack_size<typename F::type>;
    const int nv = packs <= WARP ? 1 : packs <= F::TWO_PACKS ? 2 : packs <= F::FOUR_PACKS ? 4 : 8;
    static_assert(F::TWO_PACKS <= 2 * FORWARD_BLOCK && F::FOUR_PACKS <= 4 * FORWARD_BLOCK, "a block has the row");
    const dim3 block(round_up_to_warp((packs + nv - 1) / nv), nv == 1 ? FORWARD_BLOCK / WARP : 1);
    const unsigned grid = grid_size(p.rows, block.y);
    if (nv == 1) launch_next(context, forward_registers<F, 1>, grid, block, stream, p);
    else if (nv == 2) launch_next(context, forward_registers<F, 2>, grid, block, stream, p);
    else if (nv == 4) launch_next(context, forward_registers<F, 4>, grid, block, stream, p);
    else launch_next(context, forward_registers<F, 8>, grid, block, stream, p);
}

template <typename F>
void launch_forward_loop(const typename F::problem &p, bool packable, cudaStream_t stream) {
    const unsigned grid = grid_size(p.rows, 1);
    if (packable) forward_loop<F, pack_size<typename F::type>><<<grid, BLOCK, 0, stream>>>(p);
    else forward_loop<F, 1><<<grid, BLOCK, 0, stream>>>(p);
}

} // namespace row_norm

#endif
