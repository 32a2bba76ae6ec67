/* copy_async.cuh - from global to shared memory in the background, in no register; before capability 8 in the foreground. */
#ifndef LIGER_CUDA_COPY_ASYNC_CUH
#define LIGER_CUDA_COPY_ASYNC_CUH

#include <stdint.h>

/* 16 bytes, both sides aligned. */
__device__ __forceinline__ void copy_async(void *shared, const void *global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global)
                 : "memory");
#else
    *(uint4 *)shared = *(const uint4 *)global;
#endif
}
/* 4 bytes. */
__device__ __forceinline__ void copy_async_word(void *shared, const void *global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global)
                 : "memory");
#else
    *(uint32_t *)shared = *(const uint32_t *)global;
#endif
}
/* What this thread has copied is there, for itself. */
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

#endif
