/* row_norm_parts.cuh - what both directions of row_norm.cuh share, and the ordered sum for rooms with kernels of their own. */
#ifndef LIGER_CUDA_ROW_NORM_PARTS_CUH
#define LIGER_CUDA_ROW_NORM_PARTS_CUH

#include "liger/core/norm_partials.h"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/reduce.cuh"
#include "liger/cuda/shared_memory.cuh"

namespace row_norm {

/* What the kernels are cut for. */
enum {
    RESIDENT =
        NORM_MULTIPROCESSOR_THREADS, /* threads of a multiprocessor of 64 registers each; half as many have 128 */
    BLOCK = 512                      /* threads of a block, at most; of the loop kernels */
};

/* What backward formulas share whose row is divided by its root mean square: dx = rstd · (g - pull · x), where g is dy times a
 * scale and pull = rstd² · mean(g · x). No power of rstd stands alone: its cube leaves the range of f32 where x is 1e-14. */
struct of_rstd {
    static constexpr int SUMS = 1;
    using facts = float; /* rstd */
    using pull = float;

    template <typename P>
    static __device__ __forceinline__ facts facts_of(const P &p, int64_t r) {
        return p.rstd[r];
    }
    template <int N>
    static __device__ __forceinline__ void terms(facts, const float (&dy)[N], const float (&scale)[N], float (&)[N],
                                                 float (&g)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) g[i] = dy[i] * scale[i];
    }
    template <int N>
    static __device__ __forceinline__ void normalise(facts rstd, const float (&g)[N], const float (&x)[N],
                                                     float (&sums)[SUMS], float (&normal)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            sums[0] = fmaf(g[i], x[i], sums[0]);
            normal[i] = x[i] * rstd;
        }
    }
    static __device__ __forceinline__ pull pull_of(facts rstd, const float (&means)[SUMS]) {
        return rstd * (rstd * means[0]);
    }
    static __device__ __forceinline__ float dx_of(facts rstd, pull pull, float g, float x) {
        return rstd * fmaf(-pull, x, g);
    }
};

/* Adds `count` partial rows, which must be there. A block of 32 x 32 threads has 32 columns: 32 fixed interleaved sums, then
 * those in order. */
__device__ __forceinline__ void add_partial_columns(float (&sums)[32][33], const float *partials, int count,
                                                    int64_t cols, void *to, liger_dtype dtype) {
    const int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    if (c < cols)
        for (int r = threadIdx.y; r < count; r += 32) sum += partials[(int64_t)r * cols + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    const float total = warp_sum(sums[threadIdx.x][threadIdx.y]); /* transposed: warp y owns column y */
    const int64_t column = (int64_t)blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x == 0 && column < cols) store_as(to, dtype, column, total);
}

} // namespace row_norm

#endif
