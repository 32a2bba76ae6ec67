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

/* Adds `count` partial rows. A block of 32 x 32 threads has 32 columns: 32 fixed interleaved sums, then those in order. */
__device__ __forceinline__ void add_partial_columns(float (&sums)[32][33], const float *partials, int count,
                                                    int64_t cols, void *to, liger_dtype dtype) {
    const int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    wait_for_previous_kernel();
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
