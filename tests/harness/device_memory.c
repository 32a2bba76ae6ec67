/* device_memory.c - see device_memory.h. */
#define _POSIX_C_SOURCE 199309L
#include "tests/harness/device_memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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

bool device_fill(const liger_context *context, void *memory, int byte, size_t bytes) {
    if (device_is_host(context)) return memset(memory, byte, bytes) != NULL;
#ifdef LIGER_HAS_CUDA
    return cudaMemset(memory, byte, bytes) == cudaSuccess;
#else
    return false;
#endif
}

/* ---- streams ------------------------------------------------------------------------------------------------------ */

#ifdef LIGER_HAS_CUDA

enum { HOLD_STEP_NS = 20000, HOLD_STEPS = 150000 }; /* 3 s */

struct device_stream {
    cudaStream_t stream;
    atomic_bool released, gave_up;
};

/* Runs on a thread of the driver's, in the stream's order. */
static void CUDART_CB hold(void *argument) {
    struct device_stream *stream = argument;
    for (int step = 0; step < HOLD_STEPS; step++) {
        if (atomic_load(&stream->released)) return;
        nanosleep(&(struct timespec){.tv_nsec = HOLD_STEP_NS}, NULL);
    }
    atomic_store(&stream->gave_up, true);
}

struct device_stream *device_stream_open(const liger_context *context) {
    if (device_is_host(context) || cudaSetDevice(liger_context_device(context)) != cudaSuccess) return NULL;
    struct device_stream *stream = calloc(1, sizeof *stream);
    if (stream != NULL && cudaStreamCreateWithFlags(&stream->stream, cudaStreamNonBlocking) == cudaSuccess)
        return stream;
    free(stream);
    return NULL;
}

void device_stream_close(struct device_stream *stream) {
    if (stream != NULL) cudaStreamDestroy(stream->stream);
    free(stream);
}

liger_stream device_stream_handle(const struct device_stream *stream) { return stream ? stream->stream : NULL; }

bool device_stream_copy(struct device_stream *stream, void *to, const void *from, size_t bytes) {
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream->stream) == cudaSuccess;
}

bool device_stream_hold(struct device_stream *stream) {
    atomic_store(&stream->released, false);
    atomic_store(&stream->gave_up, false);
    return cudaLaunchHostFunc(stream->stream, hold, stream) == cudaSuccess;
}

bool device_stream_gave_up(const struct device_stream *stream) { return atomic_load(&stream->gave_up); }

const char *device_stream_release(struct device_stream *stream) {
    atomic_store(&stream->released, true);
    const cudaError_t error = cudaStreamSynchronize(stream->stream);
    return error == cudaSuccess ? NULL : cudaGetErrorString(error);
}

#else

struct device_stream {
    int none;
};

struct device_stream *device_stream_open(const liger_context *context) {
    (void)context;
    return NULL;
}
void device_stream_close(struct device_stream *stream) { (void)stream; }
liger_stream device_stream_handle(const struct device_stream *stream) {
    (void)stream;
    return NULL;
}
bool device_stream_copy(struct device_stream *stream, void *to, const void *from, size_t bytes) {
    (void)stream, (void)to, (void)from, (void)bytes;
    return false;
}
bool device_stream_hold(struct device_stream *stream) {
    (void)stream;
    return false;
}
bool device_stream_gave_up(const struct device_stream *stream) {
    (void)stream;
    return false;
}
const char *device_stream_release(struct device_stream *stream) {
    (void)stream;
    return "this build has no CUDA backend";
}

#endif
