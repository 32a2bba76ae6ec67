/* cuda_context.cu - a context on one NVIDIA GPU: is it there, what is it, which of our code does it run. */
#include <cuda_runtime.h>
#include <stdlib.h>

#include "liger/core/context_state.h"
#include "liger/core/fail.h"
#include "liger/cuda/cuda_state.h"
#include "liger/cuda/launch.cuh"

extern "C" const liger_kernel_table liger_table_cuda;

static liger_status find_device(int32_t device) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    (void)cudaGetLastError(); /* told below, not to the runtime's next caller */
    if (error == cudaErrorInsufficientDriver) {
        int driver = 0;
        (void)cudaDriverGetVersion(&driver); /* 0.0 says as much as any other message */
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

/* Built for the same architectures as every kernel. */
static __global__ void probe() {}

/* What the kernels are on this device: __CUDA_ARCH__ / 10 of the code that it runs. */
static liger_status find_code(const liger_context *context, struct cuda_state *state) {
    LIGER_ON_DEVICE(context, "context_create");
    cudaFuncAttributes code;
    const cudaError_t error = cudaFuncGetAttributes(&code, probe);
    LIGER_REQUIRE(error != cudaErrorNoKernelImageForDevice, LIGER_ERR_DEVICE,
                  "context_create: this build has no code for device %d, of compute capability %d.%d", context->device,
                  state->major, state->minor);
    LIGER_TRY(cuda_status(error, "context_create"));
    state->compiled_for = code.ptxVersion;
    return LIGER_OK;
}

static liger_status find_facts(const liger_context *context, struct cuda_state *state) {
    int clusters = 0;
    const struct {
        cudaDeviceAttr which;
        int *value;
    } facts[] = {
        {cudaDevAttrMultiProcessorCount, &state->multiprocessors},
        {cudaDevAttrComputeCapabilityMajor, &state->major},
        {cudaDevAttrComputeCapabilityMinor, &state->minor},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, &state->shared_memory_per_block},
        {cudaDevAttrL2CacheSize, &state->l2_bytes},
        {cudaDevAttrClusterLaunch, &clusters},
    };
    for (const auto &fact : facts)
        LIGER_TRY(cuda_status(cudaDeviceGetAttribute(fact.value, fact.which, context->device), "context_create"));
    LIGER_TRY(find_code(context, state));
    state->clusters = clusters && state->compiled_for >= 90;
    return LIGER_OK;
}

extern "C" liger_status cuda_context_init(liger_context *context, const liger_context_options *options) {
    LIGER_TRY(find_device(options->device));
    struct cuda_state *state = (struct cuda_state *)calloc(1, sizeof *state);
    LIGER_REQUIRE(state != NULL, LIGER_ERR_OOM, "context_create: no memory for %zu bytes", sizeof *state);
    const liger_status status = find_facts(context, state);
    if (status != LIGER_OK) {
        free(state);
        return status;
    }
    context->multiprocessors = state->multiprocessors;
    context->cuda = state;
    context->kernels = &liger_table_cuda;
    return LIGER_OK;
}

extern "C" void cuda_context_close(liger_context *context) {
    if (context->cuda->cublaslt) context->cuda->cublaslt_close(context->cuda->cublaslt);
    free(context->cuda);
}
