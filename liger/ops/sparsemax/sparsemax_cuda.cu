/* sparsemax_cuda.cu - sparsemax on CUDA. Forward is a formula for the kernels of cuda/vocab_rows.cuh, with further exchanges
 * for tau: one read and one write as long as a row fits into the registers of a block or a cluster. Backward reads the support,
 * and of dy little more than what is part of it. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/simplex.cuh"
#include "liger/cuda/vocab_rows_launch.cuh"
#include "liger/ops/sparsemax/sparsemax_problem.h"

namespace sparsemax {

using namespace simplex;

enum { WORD = 32 }; /* elements of a word of the support */

/* ---- forward ------------------------------------------------------------------------------------------------------ */

template <typename T, bool IN_CLUSTERS>
struct forward_row : vocab_rows::every_row {
    static constexpr int RING = 1;
    static constexpr bool CLUSTERS = IN_CLUSTERS, BLOCKS = !IN_CLUSTERS;
    using type = T;
    using problem = sparsemax_forward_problem;
    using slot = maximum;
    using second_slot = members;
    /* Each warp finds tau for itself, with the row in registers: warps of one block, as long as they can hold it, tell each
     * other a threshold's sums in a third of the time that those of a cluster need. In a cluster there are fewer threads,
     * which need more registers. */
    enum { LEAST_THREADS = CLUSTERS ? 512 : 256, MOST_THREADS = CLUSTERS ? 512 : 1024 };
    enum { INPUTS = 1, VECTORS = 8, NARROW_THREADS = 640 };
    static constexpr int N = pack_size<T>, TOGETHER = WORD / N; /* neighbouring lanes make a word */
    template <int V>
    using part = vocab_rows::row_part<T, V>;

    static LIGER_HOST_DEVICE int64_t cols(const problem &p) { return p.cols; }
    static __device__ __forceinline__ const T *input(const problem &p, int, int64_t r) {
        return row_at<const T>(p.x, r);
    }
    static __device__ __forceinline__ uint32_t *support(const problem &p, int64_t r) {
        return p.support + r * support_words(p.cols);
    }
    static __device__ __forceinline__ slot empty() { return no_maximum(); }

    template <int V>
    static __device__ __forceinline__ slot maximum_of(const part<V> &x) {
        float max = -INFINITY;
        bool finite = true;
#pragma unroll
        for (int k = 0; k < x.COUNT; k++) {
            finite = finite && x.value(k) <= FLT_MAX;
            max = fmaxf(max, x.value(k));
        }
        return only(finite ? max : INFINITY);
    }

    /* The lanes of a word put its bits together, by whole warps; those that have no vector add none. */
    static __device__ __forceinline__ void write_bits(uint32_t *row, int vector, bool has, uint32_t bits) {
        const int place = vector % TOGETHER;
        bits = has ? bits << place * N : 0;
#pragma unroll
        for (int offset = TOGETHER / 2; offset > 0; offset /= 2) bits |= __shfl_xor_sync(0xffffffffu, bits, offset);
        if (has && place == 0) row[vector / TOGETHER] = bits;
    }

    template <int V, typename P, typename X>
    static __device__ __forceinline__ void settle_part(const problem &p, P at, int64_t r, part<V> &x, slot of_lane,
                                                       X &again) {
        at.forget();
        const float max = warp_merge(of_lane).max();
        const auto members_above = [&](float above, float origin) {
            thread_members own;
            x.forget();
#pragma unroll
            for (int j = 0; j < V; j++) {
                if (!(vocab_rows::largest(x.vector[j]) > above)) continue; /* in most vectors nothing is */
#pragma unroll
                for (int k = j * N; k < (j + 1) * N; k++)
                    if (x.value(k) > above) own.add(x.value(k) - origin);
            }
            return own.all();
        };
        const threshold tau = find_threshold(max, start_below(max, one_of<X>(of_lane)), members_above, again);
        x.forget();
        T *const y = row_at<T>(p.y, r) + at.first * (int64_t)N;
#pragma unroll
        for (int j = 0; j < V; j++) {
            float value[N];
            uint32_t bits = 0;
            unpack(x.vector[j], value);
#pragma unroll
            for (int k = 0; k < N; k++) {
                bits |= (uint32_t)tau.has(value[k]) << k;
                value[k] = tau.y(value[k]);
            }
            pack<T, N> out;
            repack(value, out);
            if (at.has(j)) store_pack(y + j * at.step * N, out);
            write_bits(support(p, r), at.first + j * at.step, at.has(j), bits);
        }
    }

    /* Narrow: registers. */
    template <int V>
    struct kept {};
    template <int V>
    static __device__ __forceinline__ slot sum_up(const part<V> (&x)[1], kept<V> &) {
        return maximum_of(x[0]);
    }
    template <int V, typename P, typename X>
    static __device__ __forceinline__ void write_out(const problem &p, const P &at, int64_t r, part<V> (&x)[1],
                                                     const kept<V> &, const slot &of_lane, X &again) {
        settle_part(p, at, r, x[0], of_lane, again);
    }

    /* Resident: registers, for as long as tau takes; the next row is on its way to shared memory. */
    struct state {
        int key;
        part<VECTORS> x;
    };
    static __device__ __forceinline__ state state_of(const problem &, int, int key) {
        state row; /* its values are loaded before they are used */
        row.key = key;
        return row;
    }
    static __device__ __forceinline__ state state_of(const problem &, int64_t, int64_t, const slot &) {
        return state();
    }
    template <typename P, typename L>
    static __device__ __forceinline__ slot first_half(const problem &, const P &at, int64_t, const uint4 *stage,
                                                      state &row, L loaded) {
        row.x.load(at, stage);
        loaded();
        return maximum_of(row.x);
    }
    template <typename P, typename L, typename X>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &, const P &at, int64_t r,
                                                       const uint4 *, state &row, const slot &of_lane, L, X &again) {
        settle_part(p, at, r, row.x, of_lane, again);
    }

    /* Streamed: a walk for each step. Then a warp writes 32 elements and their word at a time: no boundaries to mind. */
    template <int M>
    static __device__ __forceinline__ void push(const problem &, const state &, slot &s,
                                                const vocab_rows::packs<T, M, 1> &raw, int64_t) {
#pragma unroll
        for (int k = 0; k < M; k++) s.take(value_of(raw.of[0], k));
    }
    template <typename X>
    static __device__ __forceinline__ void settle(const problem &p, int64_t r, const slot &of_lane, X &again) {
        const float max = warp_merge(of_lane).max();
        const auto members_above = [&](float above, float origin) {
            thread_members own;
            vocab_rows::walk<forward_row>(p, r, [&](const auto &raw, int64_t) {
                for (const T &value : raw.of[0].value)
                    if (to_f32(value) > above) own.add(to_f32(value) - origin);
            });
            return own.all();
        };
        const threshold tau = find_threshold(max, start_below(max, one_of<X>(of_lane)), members_above, again);
        const T *const x = input(p, 0, r);
        T *const y = row_at<T>(p.y, r);
        const int lane = threadIdx.x % WARP, warps = (int)blockDim.x / WARP;
#pragma unroll 4
        for (int64_t word = threadIdx.x / WARP; word < support_words(p.cols); word += warps) {
            const int64_t i = word * WORD + lane;
            const float value = i < p.cols ? to_f32(x[i]) : 0.0f;
            const uint32_t bits = __ballot_sync(0xffffffffu, i < p.cols && tau.has(value));
            if (i < p.cols) y[i] = from_f32<T>(tau.y(value));
            if (lane == 0) support(p, r)[word] = bits;
        }
    }
};

template <typename T>
liger_status launch_forward(const liger_context *context, const sparsemax_forward_problem &p, cudaStream_t stream) {
    using of_block = forward_row<T, false>;
    using of_cluster = forward_row<T, true>;
    const bool packable =
        p.cols % pack_size<T> == 0 && rows_are_packable(p.x, sizeof(T)) && rows_are_packable(p.y, sizeof(T));
    bool done = vocab_rows::launch_narrow<of_block>(context, p, packable, stream);
    cudaError_t error = cudaSuccess;
    if (!done) error = vocab_rows::launch_resident<of_block>(context, p, packable, stream, &done);
    if (!done && error == cudaSuccess)
        error = vocab_rows::launch_resident<of_cluster>(context, p, packable, stream, &done);
    LIGER_TRY(cuda_status(error, "sparsemax_forward"));
    if (!done) vocab_rows::launch_streamed<of_block>(context, p, stream);
    return LIGER_OK;
}

/* ---- backward ----------------------------------------------------------------------------------------------------- */

/* Σ dy over the support, and its size. */
struct support_sum {
    float sum;
    int64_t count;
};
__device__ __forceinline__ support_sum warp_merge(support_sum a) { return {warp_sum(a.sum), warp_count(a.count)}; }

/* A row of `WARP_ROW` packs is a warp's alone; STAGED words of the support are kept in shared memory. */
enum { BACKWARD_THREADS = 256, UNROLL = 4, WARP_ROW = UNROLL * WARP, STAGED = 2048 };

/* The bits of N neighbours from the i-th on, which lie in one word. */
template <int N>
__device__ __forceinline__ uint32_t bits_at(const uint32_t *row, int64_t i) {
    return row[(uint64_t)i / WORD] >> (uint32_t)i % WORD & (uint32_t)((1ull << N) - 1);
}

/* A word of the support, without what stands behind the end of the row. */
__device__ __forceinline__ uint32_t word_at(const uint32_t *row, int64_t w, int64_t cols) {
    const int64_t bits = cols - w * WORD;
    if (bits <= 0) return 0;
    return bits < WORD ? row[w] & ((1u << bits) - 1) : row[w];
}

/* Adds dy over the support, whose words are put to `staged` if there is such a place. A warp looks at 32 words, and takes those
 * in which something is, a lane for each bit: of a support that is sparse few, of a dense one whole lines of memory. */
template <typename T>
__device__ __forceinline__ void add_support(const uint32_t *support, const T *dy, int64_t cols, uint32_t *staged,
                                            thread_members &own) {
    const int lane = threadIdx.x % WARP;
    const int64_t words = support_words(cols);
    for (int64_t first = threadIdx.x - lane; first < words; first += UNROLL * (int64_t)blockDim.x) {
        uint32_t word[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int64_t w = first + u * (int64_t)blockDim.x + lane;
            word[u] = word_at(support, w, cols);
            if (staged && w < words) staged[w] = word[u];
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const T *const at = dy + (first + u * (int64_t)blockDim.x) * WORD + lane;
            unsigned some = __ballot_sync(0xffffffffu, word[u] != 0);
            while (some) {
                T value[UNROLL];
                bool has[UNROLL];
#pragma unroll
                for (int k = 0; k < UNROLL; k++) {
                    const int which = some ? __ffs((int)some) - 1 : 0;
                    has[k] = some && __shfl_sync(0xffffffffu, word[u], which) >> lane & 1;
                    if (has[k]) value[k] = at[which * WORD];
                    some &= some - 1; /* of 0 it is 0 */
                }
#pragma unroll
                for (int k = 0; k < UNROLL; k++)
                    if (has[k]) own.add(to_f32(value[k]));
            }
        }
    }
}

/* Block (threads of a row, rows): a warp, or all of them. */
template <typename T, int N>
__global__ void __launch_bounds__(BACKWARD_THREADS)
    backward_kernel(const __grid_constant__ sparsemax_backward_problem p) {
    __shared__ support_sum slots[2 * BACKWARD_THREADS / WARP];
    __shared__ uint32_t stage[STAGED];
    vocab_rows::block_exchange<support_sum> exchanged = {slots, (int)blockDim.x / WARP, 0};
    const int64_t step = (int64_t)gridDim.x * blockDim.y, words = support_words(p.cols), packs = p.cols / N;
    uint32_t *const staged = blockDim.y == 1 && words <= STAGED ? stage : NULL;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; i < p.rows; i += step) {
        const int64_t r = from_the_end(p.rows, i);
        const uint32_t *support = p.support + r * words;
        const T *dy = row_at<const T>(p.dy, r);
        T *dx = row_at<T>(p.dx, r);
        thread_members own;
        add_support(support, dy, p.cols, staged, own);
        const float sum = isfinite(own.sum) ? own.sum + own.rounded : own.sum;
        const support_sum all = exchanged.all({sum, own.count}, {0.0f, 0}); /* and the stage is there */
        const float mean = all.sum / (float)all.count;
        if (staged) support = staged;
#pragma unroll UNROLL
        for (int64_t v = threadIdx.x; v < packs; v += blockDim.x) {
            const uint32_t bits = bits_at<N>(support, v * N);
            float value[N] = {};
            if (bits) {
                unpack(load_pack<T, N>(dy + v * N), value);
#pragma unroll
                for (int k = 0; k < N; k++) value[k] = bits >> k & 1 ? value[k] - mean : 0.0f;
            }
            pack<T, N> out;
            repack(value, out);
            store_pack(dx + v * N, out);
        }
        if (staged) __syncthreads(); /* nobody reads it any more */
    }
}

template <typename T, int N>
void launch_backward(const sparsemax_backward_problem &p, cudaStream_t stream) {
    const int threads = p.cols / N <= WARP_ROW ? (int)WARP : (int)BACKWARD_THREADS, rows = BACKWARD_THREADS / threads;
    backward_kernel<T, N><<<grid_size(p.rows, rows), dim3(threads, rows), 0, stream>>>(p);
}

} // namespace sparsemax

extern "C" liger_status sparsemax_forward_cuda(liger_context *context, const sparsemax_forward_problem *problem,
                                               liger_stream stream) {
    const sparsemax_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "sparsemax_forward");
    liger_status status = LIGER_OK;
    LIGER_FOR_FLOAT(p.dtype, T, status = sparsemax::launch_forward<T>(context, p, (cudaStream_t)stream))
    return status == LIGER_OK ? launched(context, "sparsemax_forward", stream) : status;
}

extern "C" liger_status sparsemax_backward_cuda(liger_context *context, const sparsemax_backward_problem *problem,
                                                liger_stream stream) {
    const sparsemax_backward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "sparsemax_backward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable =
        p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.dy, element) && rows_are_packable(p.dx, element);
    LIGER_FOR_FLOAT(p.dtype, T, if (packable) sparsemax::launch_backward<T, pack_size<T>>(p, (cudaStream_t)stream);
                    else sparsemax::launch_backward<T, 1>(p, (cudaStream_t)stream))
    return launched(context, "sparsemax_backward", stream);
}
