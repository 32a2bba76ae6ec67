/* cluster.cuh - thread-block clusters (capability 9 and later): blocks that share their shared memory.
 *
 * Compiled for an older architecture, a cluster is one block. Rule: pass cluster_barrier() once before the first remote
 * store (the peers must be running) and once before returning (a peer may still write here). */
#ifndef LIGER_CUDA_CLUSTER_CUH
#define LIGER_CUDA_CLUSTER_CUH

#include <stdint.h>
#include <string.h>

/* volatile: read again where it is needed, rather than kept in a register. */
__device__ __forceinline__ int cluster_rank() {
    unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return (int)rank;
}

__device__ __forceinline__ int cluster_size() {
    unsigned size = 1;
#if __CUDA_ARCH__ >= 900
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
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

/* A barrier in shared memory, in two halves: who has something to tell arrives and goes on, who needs it waits. It counts
 * arrivals of its own block and bytes that peers of the cluster have stored. (barrier.cluster would do too, but its release
 * waits for all earlier stores to global memory, and a row kernel has a whole row of them on the way.) Before capability 8
 * waiting is __syncthreads(): all threads of the block must wait. */
using shared_barrier = uint64_t;

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* By one thread, before the cluster_barrier() or __syncthreads() that starts the kernel. */
__device__ __forceinline__ void shared_barrier_init(shared_barrier *barrier, int arrivals) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void shared_barrier_arrive(shared_barrier *barrier) {
#if __CUDA_ARCH__ >= 800
    asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.shared.b64 state, [%0];\n\t}" ::"r"(shared_address(barrier))
                 : "memory");
#endif
}
/* One arrival that announces `bytes` from peers. */
__device__ __forceinline__ void shared_barrier_expect(shared_barrier *barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#endif
}
__device__ __forceinline__ void shared_barrier_wait(shared_barrier *barrier, int parity) {
#if __CUDA_ARCH__ >= 900
    /* Of the block, although peers have stored: what is waited for lies in this block's shared memory and is counted by the
     * barrier itself, and an acquire of the cluster would empty the L1 cache besides, by every warp. */
    asm volatile("{\n\t.reg .pred done;\n"
                 "again:\n\t"
                 "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n\t"
                 "@!done bra again;\n\t}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
#elif __CUDA_ARCH__ >= 800
    asm volatile("{\n\t.reg .pred done;\n"
                 "again:\n\t"
                 "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n\t"
                 "@!done bra again;\n\t}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
#else
    __syncthreads();
#endif
}
/* Stores a value of 8·n bytes at `shared` in block `rank`, and counts it at that block's `barrier`. */
template <typename S>
__device__ __forceinline__ void cluster_send(S *shared, const S &value, shared_barrier *barrier, int rank) {
#if __CUDA_ARCH__ >= 900
    uint32_t at, there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(shared)), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(barrier)), "r"(rank));
#pragma unroll
    for (int i = 0; i < (int)sizeof(S) / 8; i++) {
        uint64_t word;
        memcpy(&word, (const char *)&value + 8 * i, 8);
        asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(at + 8 * i),
                     "l"(word), "r"(there)
                     : "memory");
    }
#endif
}

#endif
