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

/* Two sums over a warp in the time of one and a bit: after one exchange between its halves each half adds one of them. The
 * lower half gets the first, the upper the second. */
__device__ __forceinline__ float two_warp_sums(float first, float second) {
    const bool upper = threadIdx.x % WARP >= WARP / 2;
    float sum = upper ? second : first;
    sum += __shfl_xor_sync(0xffffffffu, upper ? first : second, WARP / 2);
#pragma unroll
    for (int offset = WARP / 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    return sum;
}

/* Sums over a group of `warps` warps, in one exchange; every thread gets them. `slots` has for each sum one float per warp
 * of the block, the group's first at `first`, and must not be written again before the next barrier: alternate between two
 * sets in a loop. All threads of the block must call, unless a group is one warp. */
template <int S>
__device__ __forceinline__ void group_sums(float (&x)[S], float (*slots)[MAX_WARPS], int first, int warps) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int i = 0; i < S; i++) x[i] = warp_sum(x[i]);
    if (warps == 1) return;
#pragma unroll
    for (int i = 0; i < S; i++)
        if (lane == 0) slots[i][first + warp] = x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < S; i++) x[i] = warp_sum(lane < warps ? slots[i][first + lane] : 0.0f);
}
__device__ __forceinline__ void group_sums(float (&x)[2], float (*slots)[MAX_WARPS], int first, int warps) {
    const int lane = threadIdx.x % WARP, half = lane / (WARP / 2), place = lane % (WARP / 2);
    float sum = two_warp_sums(x[0], x[1]);
    if (warps > 1) {
        if (place == 0) slots[half][first + threadIdx.x / WARP] = sum;
        __syncthreads();
        sum = place < warps ? slots[half][first + place] : 0.0f;
        if (place + WARP / 2 < warps) sum += slots[half][first + place + WARP / 2];
#pragma unroll
        for (int offset = WARP / 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    x[0] = __shfl_sync(0xffffffffu, sum, 0), x[1] = __shfl_sync(0xffffffffu, sum, WARP / 2);
}

#endif
