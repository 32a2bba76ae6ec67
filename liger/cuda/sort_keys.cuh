/* sort_keys.cuh - keys of core/row_keys.h in order, between a room's own kernels.
 *
 * Keys are sorted in tiles of shared memory, and each key then finds its place among 16 runs by looking into all of them at
 * once, so that 16384 keys take two kernels. No atomics: what is sorted has one order. */
#ifndef LIGER_CUDA_SORT_KEYS_CUH
#define LIGER_CUDA_SORT_KEYS_CUH

#include "liger/core/row_keys.h"
#include "liger/cuda/launch.cuh"

namespace sorted_keys {

enum { TILE = 1024, RUNS = 16, MERGE_THREADS = 256 };

/* key_of(i) is key i of `count`. Bitonic: every exchange of a step is independent of the others. */
template <typename K>
__global__ void __launch_bounds__(TILE / 2)
    sort_tiles(const __grid_constant__ K key_of, int64_t count, uint64_t *sorted) {
    __shared__ uint64_t key[TILE];
    const int64_t begin = blockIdx.x * (int64_t)TILE;
    let_next_kernel_start();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int i = threadIdx.x + half * (TILE / 2);
        key[i] = ~(uint64_t)0;
        if (begin + i < count) key[i] = key_of(begin + i);
    }
    for (int length = 2; length <= TILE; length *= 2) {
        for (int step = length / 2; step > 0; step /= 2) {
            __syncthreads();
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
 * are equal. `length` of a run is a power of two. */
static __global__ void __launch_bounds__(MERGE_THREADS)
    merge_runs(const uint64_t *keys, uint64_t *merged, int64_t count, int64_t length) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int64_t i = blockIdx.x * (int64_t)MERGE_THREADS + threadIdx.x;
    if (i >= count) return;
    const int64_t first = i / (length * RUNS) * (length * RUNS), own = (i - first) / length;
    const uint64_t key = keys[i];
    int64_t before[RUNS] = {};
    for (int64_t step = length; step > 0; step /= 2) {
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            const int64_t within = before[run] + step, last = first + run * length + within - 1;
            if (within <= length && last < count && keys[last] < key) before[run] = within;
        }
    }
    int64_t place = first;
#pragma unroll
    for (int run = 0; run < RUNS; run++) place += run == own ? (i - first) % length : before[run];
    merged[place] = key;
}

/* `keys` and `other` have room for `count` keys each; *sorted becomes the one of them where they are sorted. The next kernel
 * waits for the previous one before it reads them. */
template <typename K>
cudaError_t sort_keys(const liger_context *context, const K &key_of, int64_t count, uint64_t *keys, uint64_t *other,
                      cudaStream_t stream, const uint64_t **sorted) {
    cudaError_t error = cudaSuccess;
    if (count > 0) sort_tiles<<<grid_size(count, TILE), TILE / 2, 0, stream>>>(key_of, count, keys);
    for (int64_t length = TILE; length < count && error == cudaSuccess; length *= RUNS) {
        error = launch_next(context, merge_runs, dim3(grid_size(count, MERGE_THREADS)), dim3(MERGE_THREADS), stream,
                            (const uint64_t *)keys, other, count, length);
        uint64_t *const merged = other;
        other = keys, keys = merged;
    }
    *sorted = keys;
    return error;
}

} // namespace sorted_keys

#endif
