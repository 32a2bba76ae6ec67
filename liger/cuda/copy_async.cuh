/* copy_async.cuh - from global to shared memory in the background, in no register; before capability 8 in the foreground. */
#ifndef LIGER_CUDA_COPY_ASYNC_CUH
#define LIGER_CUDA_COPY_ASYNC_CUH

#include <stdint.h>

/* 16 bytes, both sides aligned, so many bytes behind the two addresses: part of the instruction, which costs none to add. */
template <int OFFSET = 0>
__device__ __forceinline__ void copy_async(void *shared, const void *global) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
        "l"(global), "n"(OFFSET)
        : "memory");
#else
    *(uint4 *)((char *)shared + OFFSET) = *(const uint4 *)((const char *)global + OFFSET);
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
/* 16 bytes; zeros if they are not there. */
__device__ __forceinline__ void copy_or_zero(void *shared, const void *global, bool there) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(there ? 16 : 0)
                 : "memory");
#else
    *(uint4 *)shared = there ? *(const uint4 *)global : make_uint4(0, 0, 0, 0);
#endif
}
/* What has been copied since the last time is a group. */
__device__ __forceinline__ void end_of_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/* All but the last so many groups are there. */
template <int LEFT>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

#endif
