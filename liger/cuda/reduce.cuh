/* reduce.cuh - sums and maxima over a warp and a block, in a fixed order. */
#ifndef LIGER_CUDA_REDUCE_CUH
#define LIGER_CUDA_REDUCE_CUH

#include <stdint.h>

enum { WARP = 32, MAX_WARPS = 32 };

/* Over COUNT neighbouring lanes, a power of two. */
template <int COUNT>
__device__ __forceinline__ float lanes_sum(float x) {
#pragma unroll
    for (int offset = COUNT / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}
__device__ __forceinline__ float warp_sum(float x) { return lanes_sum<WARP>(x); }
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
    return lanes_sum<WARP / 2>(sum + __shfl_xor_sync(0xffffffffu, upper ? first : second, WARP / 2));
}

/* Who waits for each other at a barrier: a block, or one of up to 15 groups of whole warps in it, which then wait for
 * nobody else. */
struct whole_block {
    __device__ __forceinline__ void wait() const { __syncthreads(); }
};
template <int THREADS>
struct group_of_block {
    int group;
    __device__ __forceinline__ void wait() const {
        asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(THREADS) : "memory"); /* 0 is __syncthreads() */
    }
};

/* How many warps a group has at most, where a caller knows: a power of two. */
template <int COUNT>
struct at_most_warps {
    static_assert(COUNT >= 1 && COUNT <= WARP && (COUNT & (COUNT - 1)) == 0, "lanes of a warp are divided by it");
};

/* Sums over a group of `warps` warps, in one exchange; every thread gets them. `slots` has for each sum one float per warp
 * of the block, the group's first at `first`, and must not be written again before the group's next barrier: alternate
 * between two sets in a loop. All threads of `together` must call, unless a group is one warp. */
template <int S, int MOST = MAX_WARPS, typename B = whole_block>
__device__ __forceinline__ void group_sums(float (&x)[S], float (*slots)[MAX_WARPS], int first, int warps,
                                           at_most_warps<MOST> = {}, const B &together = B()) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, place = lane % MOST;
#pragma unroll
    for (int i = 0; i < S; i++) x[i] = warp_sum(x[i]);
    if (warps == 1) return;
#pragma unroll
    for (int i = 0; i < S; i++)
        if (lane == 0) slots[i][first + warp] = x[i];
    together.wait();
#pragma unroll
    for (int i = 0; i < S; i++) x[i] = lanes_sum<MOST>(place < warps ? slots[i][first + place] : 0.0f);
}
template <int MOST = MAX_WARPS, typename B = whole_block>
__device__ __forceinline__ void group_sums(float (&x)[2], float (*slots)[MAX_WARPS], int first, int warps,
                                           at_most_warps<MOST> = {}, const B &together = B()) {
    constexpr int LANES = MOST < WARP / 2 ? MOST : WARP / 2;
    const int lane = threadIdx.x % WARP, half = lane / (WARP / 2), place = lane % LANES;
    float sum = two_warp_sums(x[0], x[1]);
    if (warps > 1) {
        if (lane % (WARP / 2) == 0) slots[half][first + threadIdx.x / WARP] = sum;
        together.wait();
        sum = place < warps ? slots[half][first + place] : 0.0f;
        if (MOST > LANES && place + LANES < warps) sum += slots[half][first + place + LANES];
        sum = lanes_sum<LANES>(sum);
    }
    x[0] = __shfl_sync(0xffffffffu, sum, 0), x[1] = __shfl_sync(0xffffffffu, sum, WARP / 2);
}

#endif
