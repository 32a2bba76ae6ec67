/* sort_keys.cuh - keys of core/row_keys.h in order, between a room's own kernels.
 *
 * Keys are sorted in tiles of shared memory, and each key then finds its place among 16 runs by looking into all of them at
 * once, so that 16384 keys take two kernels. No atomics: what is sorted has one order.
 *
 * That is work for a few blocks, and what takes the time is to wait. So a room may give the kernels more blocks, for something
 * that has nothing to do with the keys: M, which is called with a block's number. */
#ifndef LIGER_CUDA_SORT_KEYS_CUH
#define LIGER_CUDA_SORT_KEYS_CUH

#include "liger/core/row_keys.h"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/reduce.cuh"

namespace sorted_keys {

enum { TILE_BITS = 10, TILE = 1 << TILE_BITS, RUN_BITS = 4, RUNS = 1 << RUN_BITS, MERGE_THREADS = 128 };

/* key_of(i) is key i of `count`. Bitonic: every exchange of a step is independent of the others, and those of a short step are
 * of keys that a warp has for itself. */
template <typename K, typename M>
__global__ void __launch_bounds__(TILE / 2)
    sort_tiles(const __grid_constant__ K key_of, int64_t count, uint64_t *sorted, const __grid_constant__ M meanwhile) {
    __shared__ uint64_t key[TILE];
    const int64_t begin = blockIdx.x * (int64_t)TILE;
    let_next_kernel_start();
    if (begin >= count) {
        meanwhile(blockIdx.x - (count + TILE - 1) / TILE);
        return;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int i = threadIdx.x + half * (TILE / 2);
        key[i] = ~(uint64_t)0;
        if (begin + i < count) key[i] = key_of(begin + i);
    }
    bool others = true; /* may hold keys of the next step */
    for (int length = 2; length <= TILE; length *= 2) {
        for (int step = length / 2; step > 0; step /= 2) {
            if (others || step > WARP) __syncthreads();
            else __syncwarp();
            others = step > WARP;
            const int low = 2 * (int)threadIdx.x - (int)(threadIdx.x & (step - 1)), high = low + step;
            const uint64_t a = key[low], b = key[high];
            if ((a > b) == ((low & length) == 0)) key[low] = b, key[high] = a;
        }
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int i = threadIdx.x + half * (TILE / 2);
        if (begin + i < count) sorted[begin + i] = key[i];
    }
}

/* One thread a key: how many keys are before it in its own run, and in each of the others that are merged with it. No two
 * are equal. A run has 2^bits keys, an even number of bits: a step is to a quarter of what is left, and asks three keys of every
 * run. All are on their way at once, for what a step takes is the time until memory answers. */
template <typename M>
__global__ void __launch_bounds__(MERGE_THREADS)
    merge_runs(const uint64_t *keys, uint64_t *merged, int64_t count, int bits, const __grid_constant__ M meanwhile,
               int64_t first_call) {
    let_next_kernel_start();
    if (blockIdx.x * (int64_t)MERGE_THREADS >= count) {
        meanwhile(first_call + blockIdx.x - (count + MERGE_THREADS - 1) / MERGE_THREADS);
        return;
    }
    wait_for_previous_kernel();
    const int64_t i = blockIdx.x * (int64_t)MERGE_THREADS + threadIdx.x, length = (int64_t)1 << bits;
    if (i >= count) return;
    const int64_t first = i & -(length * RUNS), own = (i - first) >> bits;
    const uint64_t key = keys[i];
    /* The last of a run's first `within` keys; behind all others if it has not so many. */
    const auto last_of = [&](int run, int64_t within) {
        const int64_t last = first + run * length + within - 1;
        return within <= length && last < count ? keys[last] : ~(uint64_t)0;
    };
    int64_t before[RUNS] = {};
    for (int64_t step = length / 4; step > 0; step /= 4) {
        uint64_t asked[RUNS][3];
#pragma unroll
        for (int run = 0; run < RUNS; run++)
#pragma unroll
            for (int k = 0; k < 3; k++) asked[run][k] = last_of(run, before[run] + (k + 1) * step);
#pragma unroll
        for (int run = 0; run < RUNS; run++)
#pragma unroll
            for (int k = 0; k < 3; k++) before[run] += asked[run][k] < key ? step : 0;
    }
    uint64_t asked[RUNS];
#pragma unroll
    for (int run = 0; run < RUNS; run++) asked[run] = last_of(run, before[run] + 1);
    int64_t place = first;
#pragma unroll
    for (int run = 0; run < RUNS; run++) {
        if (asked[run] < key) before[run]++;
        place += run == own ? (i - first) & (length - 1) : before[run];
    }
    merged[place] = key;
}

/* How many kernels sort so many keys. */
static inline int kernels(int64_t count) {
    int some = count > 0;
    for (int bits = TILE_BITS; (int64_t)1 << bits < count; bits += RUN_BITS) some++;
    return some;
}

/* `keys` and `other` have room for `count` keys each; *sorted becomes the one of them where they are sorted. The next kernel
 * waits for the previous one before it reads them. Each kernel has `spare` blocks besides, and all of these together call
 * meanwhile(0) to meanwhile(kernels(count) · spare - 1). */
template <typename K, typename M>
cudaError_t sort_keys(const liger_context *context, const K &key_of, int64_t count, uint64_t *keys, uint64_t *other,
                      const M &meanwhile, int64_t spare, cudaStream_t stream, const uint64_t **sorted) {
    cudaError_t error = cudaSuccess;
    if (count > 0) /* plainly: see launch_next() */
        sort_tiles<<<grid_size(count, TILE) + (unsigned)spare, TILE / 2, 0, stream>>>(key_of, count, keys, meanwhile);
    for (int k = 1; k < kernels(count) && error == cudaSuccess; k++) {
        const int bits = TILE_BITS + (k - 1) * RUN_BITS; /* of the runs that are there */
        error =
            launch_next(context, merge_runs<M>, dim3(grid_size(count, MERGE_THREADS) + (unsigned)spare),
                        dim3(MERGE_THREADS), stream, (const uint64_t *)keys, other, count, bits, meanwhile, k * spare);
        uint64_t *const merged = other;
        other = keys, keys = merged;
    }
    *sorted = keys;
    return error;
}

} // namespace sorted_keys

#endif
