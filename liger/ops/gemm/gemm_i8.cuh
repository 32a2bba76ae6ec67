/* gemm_i8.cuh - the product of bytes that needs no library. */
#ifndef LIGER_OPS_GEMM_I8_CUH
#define LIGER_OPS_GEMM_I8_CUH

#include <cuda_runtime.h>

#include "liger/ops/gemm/gemm_problem.h"

void multiply_i8(const gemm_problem &problem, cudaStream_t stream);

#endif
