/* gemm_cublaslt.h - matrix products of the CUDA backend, over NVIDIA's cuBLASLt. Internal.
 *
 * The library is opened at the first product: the copy that the process already has (PyTorch's), else one that the
 * system or pip installed. Algorithms come from the heuristic, asked once per shape with fixed alignments and a fixed
 * workspace, so that the bits of a result never depend on where the allocator put a tensor. */
#ifndef LIGER_OPS_GEMM_CUBLASLT_H
#define LIGER_OPS_GEMM_CUBLASLT_H

#include "liger/core/context_state.h"
#include "liger/ops/gemm/gemm_problem.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Without a bias. *refused: cuBLASLt has no algorithm for this combination of types, sizes and alignments; nothing was launched. */
liger_status cublaslt_gemm(liger_context *context, const struct gemm_problem *problem, liger_stream stream,
                           bool *refused);

/* Whether there is a cuBLASLt to ask. */
bool cublaslt_is_there(void);

#ifdef __cplusplus
}
#endif
#endif
