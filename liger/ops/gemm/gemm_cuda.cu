/* gemm_cuda.cu - matrix products on the GPU: cuBLASLt, and what it does not do (empty sizes). */
#include "liger/cuda/dtype.cuh"
#include "liger/cuda/launch.cuh"
#include "liger/ops/gemm/gemm_cublaslt.h"
#include "liger/ops/gemm/gemm_problem.h"

namespace {

/* k == 0: the product is zero, and c keeps only what is added to it. */
template <typename T, typename TC>
__global__ void __launch_bounds__(256) fill_bias(const __grid_constant__ gemm_problem p) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < p.m * p.n; i += step) {
        TC *c = (TC *)p.c + i / p.n * p.ldc + i % p.n;
        float value = p.accumulate ? to_f32(*c) : 0.0f;
        if (p.bias) value += to_f32(((const T *)p.bias)[i % p.n]);
        *c = from_f32<TC>(value);
    }
}

} // namespace

extern "C" liger_status gemm_cuda(liger_context *context, const gemm_problem *problem, liger_stream stream) {
    const gemm_problem &p = *problem;
    if (p.m == 0 || p.n == 0) return LIGER_OK;
    const device_scope device(context);
    if (p.k > 0) {
        LIGER_TRY(cublaslt_gemm(context, problem, stream));
        return context->synchronous ? launched(context, "gemm", stream) : LIGER_OK;
    }
    const unsigned grid = grid_size(p.m * p.n, 256, 65536);
    LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.c_dtype, T, TC, fill_bias<T, TC><<<grid, 256, 0, (cudaStream_t)stream>>>(p));
    return launched(context, "gemm", stream);
}
