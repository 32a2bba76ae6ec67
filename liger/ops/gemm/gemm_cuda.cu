/* gemm_cuda.cu - matrix products on the GPU: cuBLASLt, and a plain kernel for what it refuses.
 *
 * cuBLASLt has no algorithm for some small or oddly typed products (16-bit operands with an f32 result and a bias, say).
 * The plain kernel takes them, and k == 0. It is for completeness: one element per thread, tiles of 16 in shared memory. */
#include "liger/cuda/dtype.cuh"
#include "liger/cuda/launch.cuh"
#include "liger/ops/gemm/gemm_cublaslt.h"
#include "liger/ops/gemm/gemm_problem.h"

namespace {

enum { TILE = 16, MAX_GRID_Y = 65535 };

template <typename T>
__device__ __forceinline__ float element(const void *matrix, bool transposed, int64_t row, int64_t col, int64_t ld,
                                         bool inside) {
    if (!inside) return 0.0f;
    return to_f32(((const T *)matrix)[transposed ? col * ld + row : row * ld + col]);
}

template <typename T, typename TC>
__global__ void __launch_bounds__(TILE *TILE) plain_gemm(const __grid_constant__ gemm_problem p) {
    __shared__ float a[TILE][TILE + 1], b[TILE][TILE + 1];
    const int x = threadIdx.x, y = threadIdx.y;
    const int64_t col = (int64_t)blockIdx.x * TILE + x;
    for (int64_t top = (int64_t)blockIdx.y * TILE; top < p.m; top += (int64_t)gridDim.y * TILE) {
        const int64_t row = top + y;
        float sum = 0.0f;
        for (int64_t k = 0; k < p.k; k += TILE) {
            a[y][x] = element<T>(p.a, p.transpose_a, row, k + x, p.lda, row < p.m && k + x < p.k);
            b[y][x] = element<T>(p.b, p.transpose_b, k + y, col, p.ldb, col < p.n && k + y < p.k);
            __syncthreads();
#pragma unroll
            for (int i = 0; i < TILE; i++) sum = fmaf(a[y][i], b[i][x], sum);
            __syncthreads();
        }
        if (row >= p.m || col >= p.n) continue;
        TC *c = (TC *)p.c + row * p.ldc + col;
        if (p.bias) sum += to_f32(((const T *)p.bias)[col]);
        if (p.accumulate) sum += to_f32(*c);
        *c = from_f32<TC>(sum);
    }
}

} // namespace

extern "C" liger_status gemm_cuda(liger_context *context, const gemm_problem *problem, liger_stream stream) {
    const gemm_problem &p = *problem;
    if (p.m == 0 || p.n == 0) return LIGER_OK;
    const device_scope device(context);
    bool refused = p.k == 0;
    if (!refused) LIGER_TRY(cublaslt_gemm(context, problem, stream, &refused));
    if (!refused) return context->synchronous ? launched(context, "gemm", stream) : LIGER_OK;
    const dim3 grid(grid_size(p.n, TILE), grid_size(p.m, TILE, MAX_GRID_Y));
    LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.c_dtype, T, TC,
                               plain_gemm<T, TC><<<grid, dim3(TILE, TILE), 0, (cudaStream_t)stream>>>(p));
    return launched(context, "gemm", stream);
}
