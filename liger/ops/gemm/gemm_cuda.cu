/* gemm_cuda.cu - matrix products on the GPU: cuBLASLt, and a plain kernel for what it refuses.
 *
 * cuBLASLt has no algorithm for some small or oddly strided products. The plain kernel takes them, and k == 0. It is for
 * completeness: one element per thread, tiles of 16 in shared memory.
 *
 * cuBLASLt may round a 16-bit product before it adds a bias or what is in c, so that with a bias it makes f32: a strip of
 * columns at a time, in the workspace and hence in L2, from where bias_kernel takes it to c. */
#include "liger/cuda/dtype.cuh"
#include "liger/cuda/launch.cuh"
#include "liger/ops/gemm/gemm_cublaslt.h"
#include "liger/ops/gemm/gemm_i8.cuh"
#include "liger/ops/gemm/gemm_problem.h"

namespace {

enum { TILE = 16, MAX_GRID_Y = 65535, BIAS_THREADS = 256, BIAS_ROWS = 8, STRIP_STEP = 256 };

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

void multiply_plainly(const gemm_problem &p, cudaStream_t stream) {
    const dim3 grid(grid_size(p.n, TILE), grid_size(p.m, TILE, MAX_GRID_Y));
    LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.c_dtype, T, TC, plain_gemm<T, TC><<<grid, dim3(TILE, TILE), 0, stream>>>(p));
}

/* Columns [first, first + cols) of c, from their f32 products and the bias. */
template <typename T, typename TC>
__global__ void __launch_bounds__(BIAS_THREADS)
    bias_kernel(const __grid_constant__ gemm_problem p, int64_t first, int64_t cols, int64_t pitch) {
    const int64_t col = (int64_t)blockIdx.x * BIAS_THREADS + threadIdx.x;
    if (col >= cols) return;
    const float bias = to_f32(((const T *)p.bias)[first + col]);
    const float *product = (const float *)p.workspace + col;
    TC *c = (TC *)p.c + first + col;
    for (int64_t row = blockIdx.y; row < p.m; row += gridDim.y)
        c[row * p.ldc] = from_f32<TC>(product[row * pitch] + bias);
}

/* How many columns of f32 products the workspace holds: whole tiles, or at least whole 16 bytes of any dtype. */
int64_t strip_columns(const gemm_problem &p) {
    const int64_t fit = p.workspace ? (int64_t)(p.workspace_bytes / sizeof(float)) / p.m : 0;
    const int64_t step = fit < STRIP_STEP ? 8 : STRIP_STEP, wanted = (p.n + step - 1) / step;
    return (fit / step < wanted ? fit / step : wanted) * step;
}

liger_status multiply_with_bias(liger_context *context, const gemm_problem &p, liger_stream stream, bool *refused) {
    const int64_t pitch = strip_columns(p), element = (int64_t)liger_dtype_size(p.dtype);
    *refused = pitch == 0;
    gemm_problem strip = p;
    strip.bias = nullptr;
    strip.c = p.workspace, strip.c_dtype = LIGER_F32, strip.ldc = pitch;
    strip.workspace = nullptr, strip.workspace_bytes = 0;
    for (int64_t first = 0; first < p.n && !*refused; first += pitch) {
        strip.n = p.n - first < pitch ? p.n - first : pitch;
        strip.b = (const char *)p.b + (p.transpose_b ? first * p.ldb : first) * element;
        LIGER_TRY(cublaslt_gemm(context, &strip, stream, refused));
        if (*refused) break; /* the plain kernel then makes all of c */
        const dim3 grid(grid_size(strip.n, BIAS_THREADS), grid_size(p.m, BIAS_ROWS, MAX_GRID_Y));
        LIGER_FOR_FLOAT_AND_WEIGHT(p.dtype, p.c_dtype, T, TC,
                                   bias_kernel<T, TC>
                                   <<<grid, BIAS_THREADS, 0, (cudaStream_t)stream>>>(p, first, strip.n, pitch));
    }
    return LIGER_OK;
}

/* What cuBLASLt's kernels for bytes want. From 2^17 of k on a sum of products of bytes may not fit an i32, and there theirs may
 * stop at the largest number instead of wrapping around. */
bool suits_cublaslt(const gemm_problem &p) {
    const uintptr_t sixteen = (uintptr_t)p.a | (uintptr_t)p.b | (uintptr_t)p.c | (uintptr_t)p.lda | (uintptr_t)p.ldb |
                              (uintptr_t)p.k | (uintptr_t)(p.ldc * 4) | (uintptr_t)(p.n * 4);
    return sixteen % 16 == 0 && p.k > 0 && p.k < 1 << 17 && cublaslt_is_there();
}

liger_status multiply_bytes(liger_context *context, const gemm_problem &p, liger_stream stream) {
    bool refused = !suits_cublaslt(p);
    if (!refused) LIGER_TRY(cublaslt_gemm(context, &p, stream, &refused));
    if (refused) multiply_i8(p, (cudaStream_t)stream);
    return refused || context->synchronous ? launched(context, "gemm", stream) : LIGER_OK;
}

} // namespace

extern "C" liger_status gemm_cuda(liger_context *context, const gemm_problem *problem, liger_stream stream) {
    const gemm_problem &p = *problem;
    if (p.m == 0 || p.n == 0) return LIGER_OK;
    LIGER_ON_DEVICE(context, "gemm");
    if (p.dtype == LIGER_I8) return multiply_bytes(context, p, stream);
    bool refused = p.k == 0;
    if (!refused && p.bias) LIGER_TRY(multiply_with_bias(context, p, stream, &refused));
    else if (!refused) LIGER_TRY(cublaslt_gemm(context, problem, stream, &refused));
    if (refused) multiply_plainly(p, (cudaStream_t)stream);
    return refused || p.bias || context->synchronous ? launched(context, "gemm", stream) : LIGER_OK;
}
