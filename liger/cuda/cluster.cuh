/* cluster.cuh - thread-block clusters (capability 9 and later): blocks that share their shared memory.
 *
 * Compiled for an older architecture, a cluster is one block. Rule: pass cluster_barrier() once before the first remote
 * store (the peers must be running) and once before returning (a peer may still write here). */
#ifndef LIGER_CUDA_CLUSTER_CUH
#define LIGER_CUDA_CLUSTER_CUH

#include <stdint.h>

__device__ __forceinline__ int cluster_rank() {
    unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return (int)rank;
}

__device__ __forceinline__ int cluster_size() {
    unsigned size = 1;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
    return (int)size;
}

/* All threads of all blocks; what was written before, shared memory of peers included, is visible after. */
__device__ __forceinline__ void cluster_barrier(int size) {
#if __CUDA_ARCH__ >= 900
    if (size > 1) {
        asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
        return;
    }
#endif
    __syncthreads();
}

/* The same variable of this kernel in the shared memory of another block of the cluster. */
template <typename S> __device__ __forceinline__ S *cluster_map(S *shared, int rank) {
#if __CUDA_ARCH__ >= 900
    uint64_t mapped;
    asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"((uint64_t)shared), "r"(rank));
    return (S *)mapped;
#else
    return shared;
#endif
}

#endif
