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

/* Sums over a group of `warps` warps, in one exchange; every thread gets them. `slots` has for each sum one float per warp
 * of the block, the group's first at `first`, and must not be written again before the next barrier: alternate between two
 * sets in a loop. All threads of the block must call, unless a group is one warp. */
template <int S>
__device__ __forceinline__ void group_sums(float (&x)[S], float (*slots)[MAX_WARPS], int first, int warps) {
#pragma unroll
    for (int i = 0; i < S; i++) x[i] = warp_sum(x[i]);
    if (warps == 1) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int i = 0; i < S; i++)
        if (lane == 0) slots[i][first + warp] = x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < S; i++) x[i] = warp_sum(lane < warps ? slots[i][first + lane] : 0.0f);
}

#endif
