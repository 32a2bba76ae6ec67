/* vocab_rows_streamed.cuh - the kernel for every row that vocab_rows_resident.cuh does not take: rows that do not fit into
 * a cluster's shared memory, rows that are not aligned to 16 bytes, devices without clusters.
 *
 * One block per row, two walks: the sums, then what is written, for which the row is found in L2 if it is not huge.
 * Elements before the first and after the last 16-byte boundary are taken one by one.
 *
 * The formula F:
 *   type, problem                     the type of the rows; `rows` of them
 *   INPUTS, cols(p), input(p, k, r)   how many rows are read at once; the k-th input's row r
 *   batch, batch_of(p)                what is the same for all rows
 *   key(p, r)                         an integer that is known of a row before it is read
 *   skip(p, r, key)                   true: the row is not to be read, and all threads have written what it gets
 *   slot, empty(), warp_merge         what is exchanged: 8·n bytes
 *   state, state_of(p, r, key, slot)  what every thread knows of a row. An output may overwrite an input in the second walk:
 *                                     what a thread needs of other threads' values must enter its slot here
 *   push(p, state, slot, packs, i)    adds the values i, i + 1, ... of each input
 *   facts, facts_of(p, b, r, state, slot)     what has come out, for every thread
 *   writes(p), write(p, facts, packs, i)   the second walk
 *   finish(p, b, r, state, slot, facts)       by one thread, after all that was written
 *   second_slot                       see one_exchange. With further exchanges: settle(p, r, part, again) instead of facts, write
 *                                     and finish; it may walk() as often as it needs
 */
#ifndef LIGER_CUDA_VOCAB_ROWS_STREAMED_CUH
#define LIGER_CUDA_VOCAB_ROWS_STREAMED_CUH

#include "liger/cuda/launch.cuh"
#include "liger/cuda/vocab_rows.cuh"

namespace vocab_rows {

enum { STREAMED_THREADS = 512 };

/* N neighbouring values of each input, and all of them as one argument. */
template <typename T, int N, int INPUTS>
struct packs {
    pack<T, N> of[INPUTS];

    __device__ __forceinline__ void load(const T *const (&row)[INPUTS], int64_t i) {
#pragma unroll
        for (int k = 0; k < INPUTS; k++) of[k] = load_pack<T, N>(row[k] + i);
    }
};

/* The online softmax of one pack more. */
template <typename T, int N>
__device__ __forceinline__ void push_pack(softmax_state &s, const pack<T, N> &raw) {
    float x[N], most = -FLT_MAX;
    unpack(raw, x);
#pragma unroll
    for (int k = 0; k < N; k++) most = fmaxf(most, x[k]);
    const float max = fmaxf(s.max, most);
    const softmax_unit unit = softmax_unit_of(max);
    s.sum *= softmax_rescale(s.max, unit);
    s.max = max;
#pragma unroll
    for (int k = 0; k < N; k++) s.sum += softmax_term(x[k], unit);
}

/* Calls visit(packs, index of their first element) for what belongs to this thread of row r of all inputs. */
template <typename F, typename V>
__device__ __forceinline__ void walk(const typename F::problem &p, int64_t r, V visit) {
    using T = typename F::type;
    static_assert(F::INPUTS >= 1 && F::INPUTS <= 4, "packs in flight are shared by the inputs");
    constexpr int N = pack_size<T>, UNROLL = 4 / F::INPUTS;
    const T *row[F::INPUTS];
    bool alike = true; /* as far behind a boundary */
#pragma unroll
    for (int k = 0; k < F::INPUTS; k++) {
        row[k] = F::input(p, k, r);
        alike = alike && ((uintptr_t)row[k] ^ (uintptr_t)row[0]) % PACK_BYTES == 0;
    }
    const int64_t cols = F::cols(p);
    const auto visit_one = [&](int64_t i) {
        packs<T, 1, F::INPUTS> one;
        one.load(row, i);
        visit(one, i);
    };
    if (F::INPUTS > 1 && !alike) {
        for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) visit_one(i);
        return;
    }
    const int64_t head = to_boundary(row[0], cols), vectors = (cols - head) / N, tail = head + vectors * N;
    if (threadIdx.x < head) visit_one(threadIdx.x);
    for (int64_t v = threadIdx.x; v < vectors; v += UNROLL * blockDim.x) {
        packs<T, N, F::INPUTS> raw[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (v + u * blockDim.x < vectors) raw[u].load(row, head + (v + u * blockDim.x) * N);
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (v + u * blockDim.x < vectors) visit(raw[u], head + (v + u * blockDim.x) * N);
    }
    if (tail + threadIdx.x < cols) visit_one(tail + threadIdx.x);
}

template <typename F, typename X, typename Y>
__device__ __forceinline__ void streamed_row(const typename F::problem &p, const typename F::batch &b, int64_t r,
                                             int64_t key, X &exchanged, Y &again) {
    typename F::slot s = F::empty();
    const typename F::state state = F::state_of(p, r, key, s);
    walk<F>(p, r, [&](const auto &raw, int64_t i) { F::push(p, state, s, raw, i); });
    exchanged.send(s);
    s = exchanged.receive_part(F::empty());
    if constexpr (has_more_exchanges<F>) {
        F::settle(p, r, s, again);
        return;
    } else {
        s = warp_merge(s);
        const typename F::facts facts = F::facts_of(p, b, r, state, s);
        if (F::writes(p)) {
            walk<F>(p, r, [&](const auto &raw, int64_t i) { F::write(p, facts, raw, i); });
            __syncthreads(); /* what finish() replaces has been written */
        }
        if (threadIdx.x == 0) F::finish(p, b, r, state, s, facts);
    }
}

template <typename F>
__global__ void __launch_bounds__(STREAMED_THREADS, 1) streamed_kernel(const __grid_constant__ typename F::problem p) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    constexpr int WARPS = STREAMED_THREADS / WARP;
    using slot = typename F::slot;
    using second_slot = typename F::second_slot;
    __shared__ slot slots[TURNS * WARPS];
    __shared__ second_slot second_slots[2 * WARPS];
    __shared__ shared_barrier barriers[TURNS];
    exchange<slot, WARPS, false> exchanged = {slots, barriers};
    block_exchange<second_slot> again = {second_slots, WARPS, 0};
    if (threadIdx.x == 0) exchanged.init();
    __syncthreads();
    const typename F::batch b = F::batch_of(p);
    for (int64_t i = blockIdx.x; i < p.rows; i += gridDim.x) {
        const int64_t r = from_the_end(p.rows, i), key = F::key(p, r);
        if (F::skip(p, r, key)) continue;
        streamed_row<F>(p, b, r, key, exchanged, again);
    }
}

template <typename F>
void launch_streamed(const liger_context *context, const typename F::problem &p, cudaStream_t stream) {
    launch_next(context, streamed_kernel<F>, grid_size(p.rows, 1), STREAMED_THREADS, stream, p);
}

} // namespace vocab_rows

#endif
