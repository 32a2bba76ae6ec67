/* vocab_rows_summed.cuh - the kernel for rows of which only a few numbers are written: they are read once and nothing is
 * kept.
 *
 * One block per row and many blocks per multiprocessor, so that one block's reduction hides behind the loads of others.
 * Each thread keeps sums of its own and looks at its maximum once per four packs: the special-function unit, one
 * exponential per element, is then what is busy besides memory.
 *
 * The formula F:
 *   type, problem                       the type of the rows; `rows` of them
 *   cols(p), input(p, 0, r)             row r
 *   key(p, r), skip(p, r, key)          as in vocab_rows_streamed.cuh; a key may be more than an integer
 *   slot, empty(), warp_merge           the sums
 *   push(slot, packs, first, end, key)  adds SUMMED_PACKS packs, first + u·SUMMED_THREADS, those below `end`
 *   ENDS_TOGETHER                       whether finish is called by all threads of the row, not by one: values of the row
 *                                       are looked up once its sums are known
 *   finish(p, r, key, slot)
 * and if rows may lie anywhere:
 *   moved(key, begin)                   the key of a row that begins so many elements later: for push
 *   push_one(slot, value, i, key)       adds one of the values in front of the first whole pack, or behind the last */
#ifndef LIGER_CUDA_VOCAB_ROWS_SUMMED_CUH
#define LIGER_CUDA_VOCAB_ROWS_SUMMED_CUH

#include "liger/cuda/launch.cuh"
#include "liger/cuda/vocab_rows.cuh"

namespace vocab_rows {

enum { SUMMED_THREADS = 256, SUMMED_PACKS = 4 };

struct as_they_are {
    __device__ __forceinline__ float operator()(float x) const { return x; }
};

/* The online softmax of four packs more, of map(value), which grows with the value. The y-th value of the row is left out of
 * the sum: its element reads as -inf. */
template <typename T, typename M = as_they_are>
__device__ __forceinline__ softmax_state push_packs(softmax_state s, pack<T, pack_size<T>> (&raw)[SUMMED_PACKS],
                                                    int64_t v, int64_t packs, int64_t y, M map = {}) {
    constexpr int N = pack_size<T>;
    float most = -INFINITY;
#pragma unroll
    for (int u = 0; u < SUMMED_PACKS; u++) {
        const int64_t first = (v + u * SUMMED_THREADS) * N;
        if (v + u * SUMMED_THREADS >= packs) continue;
        if ((uint64_t)(y - first) < (uint64_t)N) {
#pragma unroll
            for (int i = 0; i < N; i++)
                if (first + i == y) raw[u].value[i] = from_f32<T>(-INFINITY);
        }
        most = fmaxf(most, largest(raw[u]));
    }
    const float max = fmaxf(s.max, softmax_max(map(most)));
    const softmax_unit unit = softmax_unit_of(max);
    float sum = s.sum * softmax_rescale(s.max, unit);
#pragma unroll
    for (int u = 0; u < SUMMED_PACKS; u++) {
        if (v + u * SUMMED_THREADS >= packs) continue;
        float x[N], part = 0.0f;
        unpack(raw[u], x);
#pragma unroll
        for (int i = 0; i < N; i++) part += softmax_term(map(x[i]), unit);
        sum += part;
    }
    return {max, sum};
}

/* The slot of the whole block, by the first warp. */
template <typename F>
__device__ __forceinline__ typename F::slot block_merge(typename F::slot s) {
    __shared__ typename F::slot slots[SUMMED_THREADS / WARP];
    s = warp_merge(s);
    if (threadIdx.x % WARP == 0) slots[threadIdx.x / WARP] = s;
    __syncthreads();
    return warp_merge(threadIdx.x < SUMMED_THREADS / WARP ? slots[threadIdx.x] : F::empty());
}

/* What the first warp has, for all. */
template <typename S>
__device__ __forceinline__ S block_share(S s) {
    __shared__ S shared;
    if (threadIdx.x == 0) shared = s;
    __syncthreads();
    return shared;
}

/* ALIGNED: every row begins and ends at a boundary of 16 bytes. */
template <typename F, bool ALIGNED>
__global__ void __launch_bounds__(SUMMED_THREADS) summed_kernel(const __grid_constant__ typename F::problem p) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    using T = typename F::type;
    constexpr int N = pack_size<T>;
    const int64_t r = from_the_end(p.rows, (int)blockIdx.x);
    const auto key = F::key(p, r);
    if (F::skip(p, r, key)) return;
    const T *row = F::input(p, 0, r);
    const int64_t cols = F::cols(p), head = ALIGNED ? 0 : to_boundary(row, cols), packs = (cols - head) / N;
    typename F::slot s = F::empty();
    for (int64_t v = threadIdx.x; v < packs; v += SUMMED_PACKS * SUMMED_THREADS) {
        pack<T, N> raw[SUMMED_PACKS];
#pragma unroll
        for (int u = 0; u < SUMMED_PACKS; u++)
            if (v + u * SUMMED_THREADS < packs) raw[u] = load_stream<T, N>(row + head + (v + u * SUMMED_THREADS) * N);
        if constexpr (ALIGNED) s = F::push(s, raw, v, packs, key);
        else s = F::push(s, raw, v, packs, F::moved(key, head));
    }
    if constexpr (!ALIGNED) {
        const int64_t tail = head + packs * N + threadIdx.x;
        if (threadIdx.x < head) s = F::push_one(s, row[threadIdx.x], threadIdx.x, key);
        if (tail < cols) s = F::push_one(s, row[tail], tail, key);
    }
    s = block_merge<F>(s);
    if constexpr (F::ENDS_TOGETHER) F::finish(p, r, key, block_share(s));
    else if (threadIdx.x == 0) F::finish(p, r, key, s);
}

/* At most INT32_MAX rows. */
template <typename F, bool ALIGNED = true>
void launch_summed(const liger_context *context, const typename F::problem &p, cudaStream_t stream) {
    launch_next(context, summed_kernel<F, ALIGNED>, (unsigned)p.rows, SUMMED_THREADS, stream, p);
}

} // namespace vocab_rows

#endif
