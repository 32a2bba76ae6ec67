/* cuda_state.h - what a CUDA context knows of its device. Internal; plain C, no CUDA headers. */
#ifndef LIGER_CUDA_CUDA_STATE_H
#define LIGER_CUDA_CUDA_STATE_H

#include <stdbool.h>
#include <stddef.h>

struct cublaslt;

struct cuda_state {
    int multiprocessors;
    int major, minor; /* compute capability */
    int compiled_for; /* what this device runs of the kernels: 80, 90, ...; PTX may be older than the device */
    int shared_memory_per_block; /* with opt-in */
    int l2_bytes;
    bool clusters;             /* thread-block clusters: the device and the kernels have them */
    struct cublaslt *cublaslt; /* opened at the first matrix product, with what ends it */
    void (*cublaslt_close)(struct cublaslt *);
};

#endif
