/* gemm_i8.cuh - products of bytes that need no library. */
#ifndef LIGER_OPS_GEMM_I8_CUH
#define LIGER_OPS_GEMM_I8_CUH

#include <cuda_runtime.h>

#include "liger/core/context.h"
#include "liger/ops/gemm/gemm_problem.h"

/* On tensor cores of every capability, any alignment of a. */
void multiply_i8(const gemm_problem &problem, cudaStream_t stream);

/* The fastest where it can be had: *done says whether it was launched. */
cudaError_t multiply_i8_on_hopper(const liger_context *context, const gemm_problem &problem, cudaStream_t stream,
                                  bool *done);

#endif
