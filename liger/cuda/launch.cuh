/* launch.cuh - what every launch does: the right device before, a look for errors after. No error is dropped. */
#ifndef LIGER_CUDA_LAUNCH_CUH
#define LIGER_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include "liger/core/context_state.h"
#include "liger/core/fail.h"
#include "liger/cuda/cuda_state.h"

/* An error as a status. What has been told here is not left for the next caller of the runtime to find. */
static inline liger_status cuda_status(cudaError_t error, const char *op) {
    if (error == cudaSuccess) return LIGER_OK;
    const cudaError_t told = cudaGetLastError();
    (void)told;
    return liger_fail(LIGER_ERR_CUDA, "%s: %s (%s)", op, cudaGetErrorString(error), cudaGetErrorName(error));
}

/* Makes the context's device current for a scope: the caller's current device may be another one. */
class device_scope {
  public:
    explicit device_scope(const liger_context *context) {
        error_ = cudaGetDevice(&previous_);
        if (error_ != cudaSuccess || previous_ == context->device) return;
        error_ = cudaSetDevice(context->device);
        changed_ = error_ == cudaSuccess;
    }
    ~device_scope() {
        if (changed_) (void)cudaSetDevice(previous_); /* it was current before, and nobody is left to be told */
    }
    cudaError_t error() const { return error_; }

  private:
    int previous_ = 0;
    bool changed_ = false;
    cudaError_t error_ = cudaSuccess;
};

/* The first line of an operator: nothing is launched on a device that is not the context's. */
#define LIGER_ON_DEVICE(context, op)                                                                                   \
    const device_scope device_of_this_scope(context);                                                                  \
    LIGER_TRY(cuda_status(device_of_this_scope.error(), op))

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

/* Threads that a multiprocessor holds, by architecture: a launch bound must not ask for more. */
#if __CUDA_ARCH__ == 750
constexpr int MULTIPROCESSOR_THREADS = 1024;
#elif __CUDA_ARCH__ >= 860 && __CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1100
constexpr int MULTIPROCESSOR_THREADS = 1536;
#else
constexpr int MULTIPROCESSOR_THREADS = 2048;
#endif
constexpr int at_most_blocks(int blocks, int threads) {
    return blocks * threads <= MULTIPROCESSOR_THREADS ? blocks : MULTIPROCESSOR_THREADS / threads;
}

/* What an architecture's kernels have under `#if __CUDA_ARCH__`, the host must not expect of kernels that were compiled for
 * an older one: PTX for 8.0 runs on any later GPU, as code for 8.0. */
static inline bool is_compiled_for(const liger_context *context, int architecture) {
    return context->cuda->compiled_for >= architecture;
}

/* Programmatic launches, where kernels are compiled for capability 9: a kernel that is launched with launch_next() is set up, and
 * its blocks begin, as soon as all blocks of the one before it in the stream have called let_next_kernel_start() or ended,
 * whoever launched that. So it calls wait_for_previous_kernel() on every path, before it reads or writes memory: then all that
 * came before is done, and a kernel that is done is behind everything before it.
 * Two do something earlier, as their operator's first kernel is launched plainly, behind all that came before the operator, and
 * must stay so: group_norm's elements_kernel reads the operator's inputs, and spare blocks of merge_runs write what no kernel
 * of the operator has touched, while the other blocks of theirs wait.
 * An error of the launch is what cudaGetLastError() tells, too: behind an operator's last launch, launched() does. */
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
static inline cudaLaunchAttribute early_start() {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    return attribute;
}
template <typename... P, typename... A>
cudaError_t launch_next_with(const liger_context *context, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                             cudaStream_t stream, A... arguments) {
    cudaLaunchAttribute attribute = early_start();
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = is_compiled_for(context, 90);
    return cudaLaunchKernelEx(&config, kernel, (P)arguments...);
}
template <typename... P, typename... A>
cudaError_t launch_next(const liger_context *context, void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream,
                        A... arguments) {
    return launch_next_with(context, kernel, grid, block, 0, stream, arguments...);
}

static inline int round_up_to_warp(int64_t threads) { return (int)((threads + 31) / 32 * 32); }

#endif
