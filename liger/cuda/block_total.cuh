/* block_total.cuh - the sum of one number of any type over a block, in a fixed order: where speed does not matter. */
#ifndef LIGER_CUDA_BLOCK_TOTAL_CUH
#define LIGER_CUDA_BLOCK_TOTAL_CUH

#include "liger/cuda/reduce.cuh"

template <typename S>
__device__ __forceinline__ S warp_total(S x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

/* Every thread gets it. Blocks are of whole warps. */
template <typename S>
__device__ S block_total(S x) {
    __shared__ S slots[MAX_WARPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x = warp_total(x);
    __syncthreads(); /* the slots' last readers are done */
    if (lane == 0) slots[warp] = x;
    __syncthreads();
    return warp_total(lane < (int)blockDim.x / WARP ? slots[lane] : S(0));
}

#endif
