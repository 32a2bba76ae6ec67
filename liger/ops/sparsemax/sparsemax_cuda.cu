/* sparsemax_cuda.cu - sparsemax on CUDA. Forward is a formula for the kernels of cuda/vocab_rows.cuh, with further exchanges
 * for tau: one read and one write as long as a row fits into registers or the shared memory of a cluster. Backward reads the
 * support, and of dy the vectors in which it has something: rather less than a row. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/simplex.cuh"
#include "liger/cuda/vocab_rows_launch.cuh"
#include "liger/ops/sparsemax/sparsemax_problem.h"

namespace sparsemax {

using namespace simplex;

enum { WORD = 32 }; /* elements of a word of the support */

/* ---- forward ------------------------------------------------------------------------------------------------------ */

template <typename T>
struct forward_row : vocab_rows::every_row {
    using type = T;
    using problem = sparsemax_forward_problem;
    using slot = maximum;
    using second_slot = members;
    /* Few threads: each warp finds tau for itself, and has the row in registers meanwhile. */
    enum { INPUTS = 1, VECTORS = 8, LEAST_THREADS = 256, MOST_THREADS = 512, NARROW_THREADS = 640 };
    static constexpr int N = pack_size<T>, TOGETHER = WORD / N; /* neighbouring lanes make a word */
    static constexpr uint32_t BEYOND = vocab_rows::MINUS_INFINITY<T>;
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
    static __device__ __forceinline__ void settle_part(const problem &p, const P &at, int64_t r, part<V> &x, float most,
                                                       slot of_lane, X &again) {
        const float max = warp_merge(of_lane).max();
        const auto members_above = [&](float above, float origin) {
            thread_members own;
            x.forget();
            if (most > above) {
#pragma unroll
                for (int k = 0; k < x.COUNT; k++)
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
    struct kept {
        float most;
    };
    template <int V>
    static __device__ __forceinline__ slot sum_up(const part<V> (&x)[1], kept<V> &own) {
        const slot found = maximum_of(x[0]);
        own.most = found.max();
        return found;
    }
    template <int V, typename P, typename X>
    static __device__ __forceinline__ void write_out(const problem &p, const P &at, int64_t r, part<V> (&x)[1],
                                                     const kept<V> &own, const slot &of_lane, X &again) {
        settle_part(p, at, r, x[0], own.most, of_lane, again);
    }

    /* Resident: shared memory, then registers for as long as tau takes. */
    template <typename P>
    static __device__ __forceinline__ slot first_half(const problem &, const P &at, int64_t, const uint4 *stage,
                                                      state &) {
        part<VECTORS> x;
        x.load(at, stage);
        return maximum_of(x);
    }
    template <typename P, typename L, typename X>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &, const P &at, int64_t r,
                                                       const uint4 *stage, const state &, const slot &of_lane, L loaded,
                                                       X &again) {
        part<VECTORS> x;
        x.load(at, stage);
        loaded();
        settle_part(p, at, r, x, maximum_of(x).max(), of_lane, again);
    }

    /* Streamed: a walk for each step. Then a warp writes 32 elements and their word at a time: no boundaries to mind. */
    template <int M>
    static __device__ __forceinline__ void push(const problem &, const state &, slot &s,
                                                const vocab_rows::packs<T, M, 1> &raw, int64_t) {
#pragma unroll
        for (int k = 0; k < M; k++) s.take(to_f32(raw.of[0].value[k]));
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

/* ---- backward ----------------------------------------------------------------------------------------------------- */

/* Σ dy over the support, and its size. */
struct support_sum {
    float sum;
    int64_t count;
};
__device__ __forceinline__ support_sum warp_merge(support_sum a) { return {warp_sum(a.sum), warp_count(a.count)}; }

enum { BACKWARD_THREADS = 256, UNROLL = 4, WARP_ROW = UNROLL * WARP /* packs of a row that a warp takes alone */ };

/* The bits of N neighbours from the i-th on, which lie in one word. */
template <int N>
__device__ __forceinline__ uint32_t bits_at(const uint32_t *row, int64_t i) {
    return row[(uint64_t)i / WORD] >> (uint32_t)i % WORD & (uint32_t)((1ull << N) - 1);
}

/* Calls visit(bits, packs of dy, index) for what belongs to this thread; dy is read where there are bits. */
template <typename T, int N, typename V>
__device__ __forceinline__ void walk_support(const uint32_t *support, const T *dy, int64_t cols, V visit) {
    const int64_t packs = cols / N, step = blockDim.x;
    for (int64_t v = threadIdx.x; v < packs; v += UNROLL * step) {
        uint32_t bits[UNROLL];
        pack<T, N> raw[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) bits[u] = v + u * step < packs ? bits_at<N>(support, (v + u * step) * N) : 0;
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (bits[u]) raw[u] = load_pack<T, N>(dy + (v + u * step) * N);
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (v + u * step < packs) visit(bits[u], raw[u], (v + u * step) * N);
    }
}

/* Block (threads of a row, rows): a warp, or all of them. */
template <typename T, int N>
__global__ void __launch_bounds__(BACKWARD_THREADS)
    backward_kernel(const __grid_constant__ sparsemax_backward_problem p) {
    __shared__ support_sum slots[2 * BACKWARD_THREADS / WARP];
    vocab_rows::block_exchange<support_sum> exchanged = {slots, (int)blockDim.x / WARP, 0};
    const int64_t step = (int64_t)gridDim.x * blockDim.y;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; i < p.rows; i += step) {
        const int64_t r = vocab_rows::from_the_end(p.rows, i);
        const uint32_t *support = p.support + r * support_words(p.cols);
        const T *dy = row_at<const T>(p.dy, r);
        T *dx = row_at<T>(p.dx, r);
        thread_members own;
        walk_support<T, N>(support, dy, p.cols, [&](uint32_t bits, const pack<T, N> &raw, int64_t) {
            if (bits == 0) return;
            float value[N], sum = 0.0f;
            unpack(raw, value);
#pragma unroll
            for (int k = 0; k < N; k++) sum += bits >> k & 1 ? value[k] : 0.0f;
            own.add(sum, __popc(bits));
        });
        const float sum = isfinite(own.sum) ? own.sum + own.rounded : own.sum;
        const support_sum all = exchanged.all({sum, own.count}, {0.0f, 0});
        const float mean = all.sum / (float)all.count;
        walk_support<T, N>(support, dy, p.cols, [&](uint32_t bits, const pack<T, N> &raw, int64_t c) {
            float value[N] = {};
            if (bits) {
                unpack(raw, value);
#pragma unroll
                for (int k = 0; k < N; k++) value[k] = bits >> k & 1 ? value[k] - mean : 0.0f;
            }
            pack<T, N> out;
            repack(value, out);
            store_pack(dx + c, out);
        });
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
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable =
        p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) && rows_are_packable(p.y, element);
    liger_status status = LIGER_OK;
    LIGER_FOR_FLOAT(
        p.dtype, T,
        status = vocab_rows::launch_rows<sparsemax::forward_row<T>>(context, p, packable, "sparsemax_forward", stream))
    return status;
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
