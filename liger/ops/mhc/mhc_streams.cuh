/* mhc_streams.cuh - pre-aggregation on a GPU, forward and backward: functions of their own, and parts of the coefficients'. */
#ifndef LIGER_OPS_MHC_STREAMS_CUH
#define LIGER_OPS_MHC_STREAMS_CUH

#include "liger/cuda/copy_async.cuh"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/reduce.cuh"
#include "liger/ops/mhc/mhc_problem.h"

namespace mhc {

enum { THREADS = 256, WARPS = THREADS / WARP, CHUNK = 4 }; /* CHUNK streams at a time */

/* Threads of a block that has a row of so many packs: no more than there is work for. */
static inline unsigned threads_for(int64_t packs) {
    return (unsigned)(packs < THREADS ? round_up_to_warp(packs) : THREADS);
}

template <int N>
__device__ __forceinline__ float add_products(const float (&a)[N], const float (&b)[N], float sum) {
#pragma unroll
    for (int i = 0; i < N; i++) sum = fmaf(a[i], b[i], sum);
    return sum;
}

/* A block has a part of a token's columns. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS) pre_kernel(const __grid_constant__ mhc_pre_forward_problem p) {
    const int64_t n = p.tokens - 1 - blockIdx.x; /* of what was read before, the last is still in L2 */
    const T *x = (const T *)p.x + n * p.hc * p.c;
    for (int64_t c = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * N; c < p.c;
         c += (int64_t)gridDim.y * blockDim.x * N) {
        float sum[N] = {};
#pragma unroll 4
        for (int64_t s = 0; s < p.hc; s++) {
            const float h = __ldg(p.h_pre + n * p.hc + s);
            float value[N];
            unpack(load_pack<T, N>(x + s * p.c + c), value);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] = fmaf(h, value[i], sum[i]);
        }
        pack<T, N> out;
        repack(sum, out);
        store_pack<T, N>((T *)p.y + n * p.c + c, out);
    }
}

/* A block has a token. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS) pre_backward_kernel(const __grid_constant__ mhc_pre_backward_problem p) {
    __shared__ float slots[2][CHUNK][MAX_WARPS];
    const int64_t n = blockIdx.x;
    const T *dy = (const T *)p.dy + n * p.c;
    int turn = 0;
    for (int64_t first = 0; first < p.hc; first += CHUNK, turn ^= 1) {
        const int streams = p.hc - first < CHUNK ? (int)(p.hc - first) : CHUNK;
        const int64_t stream = n * p.hc + first;
        const T *x = (const T *)p.x + stream * p.c;
        float sums[CHUNK] = {};
        for (int64_t c = threadIdx.x * N; c < p.c; c += blockDim.x * N) {
            float up[N], value[N];
            unpack(load_pack<T, N>(dy + c), up);
#pragma unroll
            for (int s = 0; s < CHUNK; s++) {
                if (s >= streams) continue;
                if (p.dh_pre) {
                    unpack(load_pack<T, N>(x + s * p.c + c), value);
                    sums[s] = add_products(up, value, sums[s]);
                }
                if (p.dx) {
                    pack<T, N> out;
                    const float h = __ldg(p.h_pre + stream + s);
#pragma unroll
                    for (int i = 0; i < N; i++) value[i] = h * up[i];
                    repack(value, out);
                    store_pack<T, N>((T *)p.dx + (stream + s) * p.c + c, out);
                }
            }
        }
        if (!p.dh_pre) continue;
        group_sums(sums, slots[turn], 0, blockDim.x / WARP);
        if (threadIdx.x == 0)
            for (int s = 0; s < streams; s++) p.dh_pre[stream + s] = sums[s];
    }
}

static inline dim3 blocks_of_columns(int64_t tokens, int64_t packs) {
    return dim3((unsigned)tokens, grid_size(packs, THREADS, 65535));
}
static inline bool whole_packs(int64_t c, liger_dtype dtype) { return c * liger_dtype_size(dtype) % PACK_BYTES == 0; }

static inline void launch_pre(const mhc_pre_forward_problem &p, cudaStream_t stream) {
    const bool packable = whole_packs(p.c, p.dtype) && pointer_is_packable(p.x) && pointer_is_packable(p.y);
    LIGER_FOR_FLOAT(p.dtype, T, {
        const int64_t packs = packable ? p.c / pack_size<T> : p.c;
        const dim3 grid = blocks_of_columns(p.tokens, packs);
        if (packable) pre_kernel<T, pack_size<T>><<<grid, threads_for(packs), 0, stream>>>(p);
        else pre_kernel<T, 1><<<grid, threads_for(packs), 0, stream>>>(p);
    })
}
static inline void launch_pre_backward(const mhc_pre_backward_problem &p, cudaStream_t stream) {
    const unsigned tokens = (unsigned)p.tokens;
    const bool packable =
        whole_packs(p.c, p.dtype) && pointer_is_packable(p.dy) && pointer_is_packable(p.x) && pointer_is_packable(p.dx);
    LIGER_FOR_FLOAT(p.dtype, T, {
        const unsigned threads = threads_for(packable ? p.c / pack_size<T> : p.c);
        if (packable) pre_backward_kernel<T, pack_size<T>><<<tokens, threads, 0, stream>>>(p);
        else pre_backward_kernel<T, 1><<<tokens, threads, 0, stream>>>(p);
    })
}

} // namespace mhc

#endif
