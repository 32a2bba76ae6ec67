/* cuda_context.cu - a context on one NVIDIA GPU: is it there, what is it. */
#include <cuda_runtime.h>
#include <stdlib.h>

#include "liger/core/context_state.h"
#include "liger/core/fail.h"
#include "liger/cuda/cuda_state.h"

extern "C" const liger_kernel_table liger_table_cuda;

static liger_status find_device(int32_t device) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver) {
        int driver = 0;
        cudaDriverGetVersion(&driver);
        return liger_fail(
            LIGER_ERR_DEVICE,
            "context_create: the NVIDIA driver supports CUDA %d.%d, but this build was made with CUDA %d.%d "
            "and needs a newer driver (580 or later for CUDA 13)",
            driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    }
    LIGER_REQUIRE(error == cudaSuccess, LIGER_ERR_DEVICE, "context_create: no CUDA device can be used: %s",
                  cudaGetErrorString(error));
    LIGER_REQUIRE(device < count, LIGER_ERR_DEVICE, "context_create: device is %d, but there are %d CUDA devices",
                  device, count);
    return LIGER_OK;
}

static int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    cudaDeviceGetAttribute(&value, which, device);
    return value;
}

extern "C" liger_status cuda_context_init(liger_context *context, const liger_context_options *options) {
    LIGER_TRY(find_device(options->device));
    struct cuda_state *state = (struct cuda_state *)calloc(1, sizeof *state);
    LIGER_REQUIRE(state != NULL, LIGER_ERR_OOM, "context_create: no memory for %zu bytes", sizeof *state);
    const int device = options->device;
    state->multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
    state->major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    state->minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
    state->shared_memory_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    state->l2_bytes = attribute(cudaDevAttrL2CacheSize, device);
    state->clusters = state->major >= 9 && attribute(cudaDevAttrClusterLaunch, device);
    context->multiprocessors = state->multiprocessors;
    context->cuda = state;
    context->kernels = &liger_table_cuda;
    return LIGER_OK;
}

extern "C" void cuda_context_close(liger_context *context) {
    if (context->cuda->cublaslt) context->cuda->cublaslt_close(context->cuda->cublaslt);
    free(context->cuda);
}
