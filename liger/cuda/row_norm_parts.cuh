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
    RESIDENT = NORM_MULTIPROCESSOR_THREADS, /* threads of a multiprocessor: 64 registers each */
    BLOCK = 512                             /* threads of a block, at most; of the loop kernels */
};

template <typename T>
__device__ __forceinline__ T *row_at(liger_rows rows, int64_t r) {
    return (T *)rows.data + liger_row_offset(rows, r);
}

} // namespace row_norm

#endif
