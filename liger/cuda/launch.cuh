/* launch.cuh - what every launch does: the right device before, a look for errors after. */
#ifndef LIGER_CUDA_LAUNCH_CUH
#define LIGER_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include "liger/core/context_state.h"
#include "liger/core/fail.h"
#include "liger/cuda/cuda_state.h"

/* Makes the context's device current for a scope: the caller's current device may be another one. */
class device_scope {
  public:
    explicit device_scope(const liger_context *context) {
        cudaGetDevice(&previous_);
        changed_ = previous_ != context->device;
        if (changed_) cudaSetDevice(context->device);
    }
    ~device_scope() {
        if (changed_) cudaSetDevice(previous_);
    }

  private:
    int previous_ = 0;
    bool changed_ = false;
};

static inline liger_status cuda_status(cudaError_t error, const char *op) {
    if (error == cudaSuccess) return LIGER_OK;
    return liger_fail(LIGER_ERR_CUDA, "%s: %s (%s)", op, cudaGetErrorString(error), cudaGetErrorName(error));
}

/* After the last launch of an operator. With LIGER_SYNC=1 it waits, so that a fault is reported by its own operator. */
static inline liger_status launched(const liger_context *context, const char *op, liger_stream stream) {
    cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess && context->synchronous) error = cudaStreamSynchronize((cudaStream_t)stream);
    return cuda_status(error, op);
}

/* Blocks of a one-dimensional grid for `work` items, `per_block` each; kernels loop if that is more than fits. */
static inline unsigned grid_size(int64_t work, int64_t per_block, int64_t most = 0x7fffffff) {
    const int64_t blocks = (work + per_block - 1) / per_block;
    return (unsigned)(blocks < most ? (blocks < 1 ? 1 : blocks) : most);
}

/* Two kernels of one operator in a row, from capability 9 on: the second is set up while the first still runs, and its
 * blocks start as the first one's end. The first must call let_next_kernel_start(), the second wait_for_previous_kernel()
 * before it reads what the first has written. */
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
template <typename... P, typename... A>
cudaError_t launch_next(const liger_context *context, void (*kernel)(P...), unsigned grid, dim3 block,
                        cudaStream_t stream, A... arguments) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(grid);
    config.blockDim = block;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = context->cuda->major >= 9;
    return cudaLaunchKernelEx(&config, kernel, (P)arguments...);
}

/* More than 48 KB of shared memory must be asked for once per kernel and device; the answer is remembered. What a kernel
 * declares statically counts against the same limit. */
enum { STATIC_SHARED = 1024 };
template <auto kernel>
liger_status allow_shared_memory(const liger_context *context, size_t bytes, const char *op) {
    static unsigned long long allowed[4]; /* one bit per device; setting it twice does no harm */
    unsigned long long *const word = &allowed[context->device / 64 % 4];
    const unsigned long long bit = 1ull << context->device % 64;
    if (bytes <= 48 * 1024 - STATIC_SHARED || (__atomic_load_n(word, __ATOMIC_RELAXED) & bit)) return LIGER_OK;
    LIGER_TRY(cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               context->cuda->shared_memory_per_block - STATIC_SHARED),
                          op));
    __atomic_fetch_or(word, bit, __ATOMIC_RELAXED);
    return LIGER_OK;
}

static inline int round_up_to_warp(int64_t threads) { return (int)((threads + 31) / 32 * 32); }

#endif
