/* row_norm_parts.cuh - what both directions of row_norm.cuh share. */
#ifndef LIGER_CUDA_ROW_NORM_PARTS_CUH
#define LIGER_CUDA_ROW_NORM_PARTS_CUH

#include "liger/core/norm_partials.h"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/reduce.cuh"
#include "liger/cuda/shared_memory.cuh"

namespace row_norm {

/* What the kernels are cut for. */
enum {
    RESIDENT =
        NORM_MULTIPROCESSOR_THREADS, /* threads of a multiprocessor of 64 registers each; half as many have 128 */
    BLOCK = 512                      /* threads of a block, at most; of the loop kernels */
};

} // namespace row_norm

#endif
