/* gemm_cuda.cu - matrix products on the GPU: cuBLASLt, and a plain kernel for what it refuses.
 *
 * cuBLASLt has no algorithm for some small or oddly strided products. The plain kernel takes them, and k == 0. It is for
 * completeness: one element per thread, tiles of 16 in shared memory.
 *
 * A bias is written into every row of c, and the product is added to it. cuBLASLt's own bias would save writing and reading
 * c once, but it may round a 16-bit product before it adds the bias; with what is in c it never does. */
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/ops/gemm/gemm_cublaslt.h"
#include "liger/ops/gemm/gemm_problem.h"

namespace {

enum { TILE = 16, MAX_GRID_Y = 65535, FILL_THREADS = 256, FILL_GRID_Y = 64 };

template <typename T, typename TC>
__global__ void __launch_bounds__(FILL_THREADS)
    fill_rows_with_bias(const __grid_constant__ gemm_problem p, bool packable) {
    constexpr int N = pack_size<TC>;
    const int64_t first = ((int64_t)blockIdx.x * FILL_THREADS + threadIdx.x) * N;
    const int count = (int)(p.n - first < N ? p.n - first : N);
    pack<TC, N> bias;
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < count) bias.value[i] = from_f32<TC>(to_f32(((const T *)p.bias)[first + i]));
    for (int64_t row = blockIdx.y; row < p.m; row += gridDim.y) {
        TC *const c = (TC *)p.c + row * p.ldc + first;
        if (packable && count == N) {
            store_pack<TC, N>(c, bias);
            continue;
        }
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < count) c[i] = bias.value[i];
    }
}

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
        if (p.accumulate) sum += to_f32(*c);
        *c = from_f32<TC>(sum);
    }
}

void start_from_bias(const gemm_problem &p, cudaStream_t stream) {
    const int64_t row_bytes = p.ldc * (int64_t)liger_dtype_size(p.c_dtype);
    const bool packable = pointer_is_packable(p.c) && row_bytes % PACK_BYTES == 0;
    const int64_t block_cols = FILL_THREADS * (PACK_BYTES / (int64_t)liger_dtype_size(p.c_dtype));
    const dim3 grid(grid_size(p.n, block_cols), grid_size(p.m, 1, FILL_GRID_Y));
    LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.c_dtype, T, TC,
                               fill_rows_with_bias<T, TC><<<grid, FILL_THREADS, 0, stream>>>(p, packable));
}

void multiply_plainly(const gemm_problem &p, cudaStream_t stream) {
    const dim3 grid(grid_size(p.n, TILE), grid_size(p.m, TILE, MAX_GRID_Y));
    LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.c_dtype, T, TC, plain_gemm<T, TC><<<grid, dim3(TILE, TILE), 0, stream>>>(p));
}

} // namespace

extern "C" liger_status gemm_cuda(liger_context *context, const gemm_problem *problem, liger_stream stream) {
    gemm_problem p = *problem;
    if (p.m == 0 || p.n == 0) return LIGER_OK;
    const device_scope device(context);
    if (p.bias) {
        start_from_bias(p, (cudaStream_t)stream);
        p.bias = nullptr;
        p.accumulate = true;
    }
    bool refused = p.k == 0;
    if (!refused) LIGER_TRY(cublaslt_gemm(context, &p, stream, &refused));
    if (refused) multiply_plainly(p, (cudaStream_t)stream);
    return refused || problem->bias || context->synchronous ? launched(context, "gemm", stream) : LIGER_OK;
}
