/* reduce.cuh - sums and maxima over a warp and a block, in a fixed order. */
#ifndef LIGER_CUDA_REDUCE_CUH
#define LIGER_CUDA_REDUCE_CUH

#include <stdint.h>

enum { WARP = 32, MAX_WARPS = 32 };

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

/* The sum over a group of `warps` warps; every thread gets it. `slots` has one float per warp of the group and must not
 * be written again before the next barrier: alternate between two sets in a loop. All threads of the block must call,
 * unless a group is one warp. */
__device__ __forceinline__ float group_sum(float x, float *slots, int warps) {
    x = warp_sum(x);
    if (warps == 1) return x;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 0) slots[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? slots[lane] : 0.0f);
}

#endif
