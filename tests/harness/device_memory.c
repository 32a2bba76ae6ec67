/* device_memory.c - see device_memory.h. */
#include "tests/harness/device_memory.h"

#include <stdlib.h>
#include <string.h>

#ifdef LIGER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

bool device_is_host(const liger_context *context) { return liger_context_device(context) == LIGER_DEVICE_CPU; }

void *device_allocate(const liger_context *context, size_t bytes) {
    void *memory = NULL;
    if (device_is_host(context)) return aligned_alloc(256, (bytes + 256) / 256 * 256);
#ifdef LIGER_HAS_CUDA
    if (cudaSetDevice(liger_context_device(context)) != cudaSuccess) return NULL;
    if (cudaMalloc(&memory, bytes + 256) != cudaSuccess) return NULL;
#endif
    return memory;
}

void device_release(const liger_context *context, void *memory) {
    if (device_is_host(context)) free(memory);
#ifdef LIGER_HAS_CUDA
    else cudaFree(memory);
#endif
}

bool device_upload(const liger_context *context, void *to, const void *from, size_t bytes) {
    if (device_is_host(context)) return memcpy(to, from, bytes) != NULL;
#ifdef LIGER_HAS_CUDA
    return cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice) == cudaSuccess;
#else
    return false;
#endif
}

bool device_download(const liger_context *context, void *to, const void *from, size_t bytes) {
    if (device_is_host(context)) return memcpy(to, from, bytes) != NULL;
#ifdef LIGER_HAS_CUDA
    return cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost) == cudaSuccess;
#else
    return false;
#endif
}

const char *device_synchronize(const liger_context *context) {
    if (device_is_host(context)) return NULL;
#ifdef LIGER_HAS_CUDA
    const cudaError_t error = cudaDeviceSynchronize();
    return error == cudaSuccess ? NULL : cudaGetErrorString(error);
#else
    return "this build has no CUDA backend";
#endif
}
