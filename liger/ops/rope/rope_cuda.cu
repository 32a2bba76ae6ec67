/* rope_cuda.cu - RoPE on the GPU: one read and one write of q and k, whatever their strides.
 *
 * A thread owns one pack of the first half of a head and its partner in the second half, and keeps the angles of that
 * pack in registers while it walks the heads of a token, two at a time: their loads are on the way together. A block is
 * (packs of a head, heads, tokens). Forward and backward differ in the sign of sin. Products and sum are separate
 * instructions, as on the CPU: the same bits. */
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/ops/rope/rope_problem.h"

namespace {

enum { MAX_THREADS = 256, MAX_THREADS_X = 128, MAX_THREADS_Z = 64, MAX_GRID_Y = 65535 };

/* One token: where its heads are read and written. Heads count through q and then k. */
template <typename T>
struct token {
    const T *q, *k;
    T *q_out, *k_out;
};

template <typename T>
__device__ __forceinline__ T *token_of(const rope_heads &x, int64_t batch, int64_t s) {
    return (T *)x.data + batch * x.batch_stride + s * x.seq_stride;
}
template <typename T>
__device__ __forceinline__ const T *source(const rope_problem &p, const token<T> &at, int head) {
    return head < p.q_heads ? at.q + head * p.q.head_stride : at.k + (head - p.q_heads) * p.k.head_stride;
}
template <typename T>
__device__ __forceinline__ T *target(const rope_problem &p, const token<T> &at, int head) {
    return head < p.q_heads ? at.q_out + head * p.q_out.head_stride
                            : at.k_out + (head - p.q_heads) * p.k_out.head_stride;
}

/* As loaded: they are widened after the heads' loads have been issued, so that one latency covers both. */
template <typename TT, int N>
struct angles {
    pack<TT, N> cos, sin;
};

template <typename TT, int N>
__device__ __forceinline__ angles<TT, N> load_angles(const rope_problem &p, int64_t batch, int64_t s, int64_t i) {
    return {load_shared<TT, N>((const TT *)p.cos + batch * p.cos_batch_stride + s * p.cos_seq_stride + i),
            load_shared<TT, N>((const TT *)p.sin + batch * p.sin_batch_stride + s * p.sin_seq_stride + i)};
}

/* What a kernel is compiled for: forward, backward, or either with operands rounded to a narrower dtype first. */
enum variant { FORWARD, INVERSE, ROUNDED };

/* The two packs become their rotation. */
template <typename T, typename TT, int N, variant V>
__device__ __forceinline__ void rotate(const rope_problem &p, const angles<TT, N> &by, pack<T, N> &low,
                                       pack<T, N> &high) {
    float cos[N], sin[N], a[N], b[N];
    unpack(by.cos, cos);
    unpack(by.sin, sin);
    unpack(low, a);
    unpack(high, b);
#pragma unroll
    for (int k = 0; k < N; k++) {
        if (V == ROUNDED) {
            a[k] = round_to_dtype(p.operand_dtype, a[k]);
            b[k] = round_to_dtype(p.operand_dtype, b[k]);
        }
        const float s = V == INVERSE || (V == ROUNDED && p.inverse) ? -sin[k] : sin[k], first = a[k];
        a[k] = __fsub_rn(__fmul_rn(first, cos[k]), __fmul_rn(b[k], s));
        b[k] = __fadd_rn(__fmul_rn(b[k], cos[k]), __fmul_rn(first, s));
    }
    repack(a, low);
    repack(b, high);
}

/* Elements [i, i+N) and [half+i, half+i+N) of every head that is this thread's. */
template <typename T, typename TT, int N, variant V>
__device__ __forceinline__ void rotate_heads(const rope_problem &p, const token<T> &at, const angles<TT, N> &by,
                                             int i) {
    const int heads = (int)(p.q_heads + p.k_heads);
    for (int one = threadIdx.y; one < heads; one += 2 * blockDim.y) {
        const int two = one + blockDim.y;
        const bool both = two < heads;
        const T *x = source(p, at, one) + i;
        pack<T, N> low = load_pack<T, N>(x), high = load_pack<T, N>(x + p.half);
        pack<T, N> low_two = {}, high_two = {};
        if (both) {
            const T *x_two = source(p, at, two) + i;
            low_two = load_pack<T, N>(x_two);
            high_two = load_pack<T, N>(x_two + p.half);
        }
        rotate<T, TT, N, V>(p, by, low, high);
        T *y = target(p, at, one) + i;
        store_pack<T, N>(y, low);
        store_pack<T, N>(y + p.half, high);
        if (!both) continue;
        rotate<T, TT, N, V>(p, by, low_two, high_two);
        T *y_two = target(p, at, two) + i;
        store_pack<T, N>(y_two, low_two);
        store_pack<T, N>(y_two + p.half, high_two);
    }
}

/* Elements [i, i+N) behind the rotated ones. */
template <typename T, int N>
__device__ __forceinline__ void copy_heads(const rope_problem &p, const token<T> &at, int i) {
    for (int head = threadIdx.y; head < p.q_heads + p.k_heads; head += blockDim.y) {
        const T *x = source(p, at, head) + i;
        T *y = target(p, at, head) + i;
        if (x != y) store_pack<T, N>(y, load_pack<T, N>(x));
    }
}

template <typename T, typename TT, int N, variant V>
__global__ void __launch_bounds__(MAX_THREADS) rope_kernel(const __grid_constant__ rope_problem p) {
    const int pairs = (int)(p.half / N), items = pairs + (int)((p.dim - 2 * p.half) / N);
    const int64_t s = (int64_t)blockIdx.x * blockDim.z + threadIdx.z;
    if (s >= p.seq) return;
    for (int64_t batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
        const token<T> at = {token_of<const T>(p.q, batch, s), token_of<const T>(p.k, batch, s),
                             token_of<T>(p.q_out, batch, s), token_of<T>(p.k_out, batch, s)};
        for (int item = threadIdx.x; item < items; item += blockDim.x) {
            if (item < pairs) rotate_heads<T, TT, N, V>(p, at, load_angles<TT, N>(p, batch, s, item * N), item * N);
            else copy_heads<T, N>(p, at, (int)(2 * p.half) + (item - pairs) * N);
        }
    }
}

bool heads_are_packable(const rope_heads &x, size_t element) {
    const int64_t strides = x.batch_stride | x.head_stride | x.seq_stride;
    return ((uintptr_t)x.data | (uintptr_t)(strides * (int64_t)element)) % PACK_BYTES == 0;
}

bool is_packable(const rope_problem &p) {
    const size_t element = liger_dtype_size(p.dtype), angle = liger_dtype_size(p.table_dtype);
    const int64_t tables = p.cos_batch_stride | p.cos_seq_stride | p.sin_batch_stride | p.sin_seq_stride;
    return (p.half * element) % PACK_BYTES == 0 && (p.dim * element) % PACK_BYTES == 0 &&
           heads_are_packable(p.q, element) && heads_are_packable(p.k, element) &&
           heads_are_packable(p.q_out, element) && heads_are_packable(p.k_out, element) && pointer_is_packable(p.cos) &&
           pointer_is_packable(p.sin) && (uintptr_t)(tables * (int64_t)angle) % PACK_BYTES == 0;
}

int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }

template <typename T, typename TT, int N>
void launch(const rope_problem &p, cudaStream_t stream) {
    const int64_t x = at_most(p.half / N + (p.dim - 2 * p.half) / N, MAX_THREADS_X);
    const int64_t y = at_most((p.q_heads + p.k_heads + 1) / 2, MAX_THREADS / x);
    const int64_t z = at_most(at_most(p.seq, MAX_THREADS_Z), MAX_THREADS / (x * y));
    const dim3 grid(grid_size(p.seq, z), (unsigned)at_most(p.batch, MAX_GRID_Y));
    const dim3 block((unsigned)x, (unsigned)y, (unsigned)z);
    if (p.operand_dtype != LIGER_F32) rope_kernel<T, TT, N, ROUNDED><<<grid, block, 0, stream>>>(p);
    else if (p.inverse) rope_kernel<T, TT, N, INVERSE><<<grid, block, 0, stream>>>(p);
    else rope_kernel<T, TT, N, FORWARD><<<grid, block, 0, stream>>>(p);
}

liger_status run(const liger_context *context, const rope_problem &p, const char *op, liger_stream stream) {
    const device_scope device(context);
    const bool packable = is_packable(p);
    LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.table_dtype, T, TT,
                               if (packable) launch<T, TT, pack_size<T>>(p, (cudaStream_t)stream);
                               else launch<T, TT, 1>(p, (cudaStream_t)stream));
    return launched(context, op, stream);
}

} // namespace

extern "C" liger_status rope_forward_cuda(liger_context *context, const rope_forward_problem *problem,
                                          liger_stream stream) {
    return run(context, problem->rope, "rope_forward", stream);
}

extern "C" liger_status rope_backward_cuda(liger_context *context, const rope_backward_problem *problem,
                                           liger_stream stream) {
    return run(context, problem->rope, "rope_backward", stream);
}
