/* shared_memory.cuh - how much shared memory a block may have, and asking for it.
 *
 * Which kernel takes a problem may depend on it. Such a choice is a constexpr function of the memory there is, so that a
 * static_assert can go through every architecture that a release is built for: what does not fit does not compile. */
#ifndef LIGER_CUDA_SHARED_MEMORY_CUH
#define LIGER_CUDA_SHARED_MEMORY_CUH

#include "liger/cuda/launch.cuh"

/* Reserved for what a kernel with dynamic shared memory declares besides: both count against one limit. */
enum { STATIC_SHARED = 1024, SHARED_UNASKED = 48 * 1024 };

struct architecture {
    int number;
    size_t shared; /* of one block, with opt-in: static and dynamic together */
};
constexpr architecture ARCHITECTURES[] = {{75, 64 << 10},   {80, 163 << 10}, {86, 99 << 10},   {87, 163 << 10},
                                          {89, 99 << 10},   {90, 227 << 10}, {100, 227 << 10}, {103, 227 << 10},
                                          {110, 227 << 10}, {120, 99 << 10}, {121, 99 << 10}};
#if defined(__CUDA_ARCH_LIST__)
/* Every architecture of this build stands in the table (90a is 90). */
constexpr bool architectures_are_known() {
    const int built[] = {__CUDA_ARCH_LIST__};
    for (const int one : built) {
        bool known = false;
        for (const architecture &a : ARCHITECTURES) known = known || a.number * 10 == one;
        if (!known) return false;
    }
    return true;
}
static_assert(architectures_are_known(), "an architecture of this build is missing in ARCHITECTURES");
#endif

/* Dynamic shared memory that a block may have. */
constexpr size_t dynamic_shared(size_t shared) { return shared - STATIC_SHARED; }
static inline size_t dynamic_shared_of(const liger_context *context) {
    return dynamic_shared((size_t)context->cuda->shared_memory_per_block);
}

/* More than 48 KB must be asked for once per kernel and device. All that there is is asked for: what one launch sets must
 * be enough for every later one, whatever its shape. */
template <auto kernel>
cudaError_t allow_shared_memory(const liger_context *context, size_t bytes) {
    static unsigned long long allowed[4]; /* one bit per device; setting it twice does no harm */
    const int device = context->device, most = (int)sizeof allowed * 8;
    unsigned long long *const word = &allowed[device < most ? device / 64 : 0];
    const unsigned long long bit = device < most ? 1ull << device % 64 : 0;
    if (bytes <= SHARED_UNASKED - STATIC_SHARED || (__atomic_load_n(word, __ATOMIC_RELAXED) & bit)) return cudaSuccess;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)dynamic_shared_of(context));
    if (error == cudaSuccess) __atomic_fetch_or(word, bit, __ATOMIC_RELAXED);
    return error;
}

#endif
