/* cuda_state.h - what a CUDA context knows of its device. Internal; plain C, no CUDA headers. */
#ifndef LIGER_CUDA_CUDA_STATE_H
#define LIGER_CUDA_CUDA_STATE_H

#include <stdbool.h>
#include <stddef.h>

struct cublaslt;

struct cuda_state {
    int multiprocessors;
    int major, minor;            /* compute capability */
    int shared_memory_per_block; /* with opt-in */
    int l2_bytes;
    bool clusters;             /* thread-block clusters: capability 9 and later */
    struct cublaslt *cublaslt; /* opened at the first matrix product, with what ends it */
    void (*cublaslt_close)(struct cublaslt *);
};

#endif
