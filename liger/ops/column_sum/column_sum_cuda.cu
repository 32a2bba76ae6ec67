/* column_sum_cuda.cu - sums over rows on CUDA: partial sums over fixed blocks of rows, then the partials in order.
 *
 * The blocks depend on the shape only, and there are no atomics: same inputs, same bits. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/ops/column_sum/column_sum_problem.h"

namespace {

enum { THREADS = 128, UNROLL = 8 };

/* Block (x, y) sums rows [y · rows_per_block, ...) of its N · THREADS columns. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS, 8) partial_kernel(const column_sum_problem p, int64_t rows_per_block) {
    const int64_t column = (blockIdx.x * (int64_t)THREADS + threadIdx.x) * N;
    if (column >= p.cols) return;
    const int64_t first = blockIdx.y * rows_per_block;
    const int64_t last = first + rows_per_block < p.rows ? first + rows_per_block : p.rows;
    const T *x = (const T *)p.x + column;
    float sum[N] = {};
    int64_t r = first;
    for (; r + UNROLL <= last; r += UNROLL) {
        pack<T, N> in[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) in[u] = load_stream<T, N>(x + (r + u) * p.stride);
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
#pragma unroll
            for (int k = 0; k < N; k++) sum[k] += value_of(in[u], k);
    }
    for (; r < last; r++) {
        const pack<T, N> in = load_stream<T, N>(x + r * p.stride);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += value_of(in, k);
    }
    float *out = p.workspace + blockIdx.y * p.cols + column;
#pragma unroll
    for (int k = 0; k < N; k++) out[k] = sum[k];
}

__global__ void __launch_bounds__(THREADS, 8) total_kernel(const column_sum_problem p, int blocks) {
    const int64_t column = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (column >= p.cols) return;
    float sum = p.accumulate ? p.sum[column] : 0.0f;
#pragma unroll 8
    for (int b = 0; b < blocks; b++) sum += p.workspace[b * p.cols + column];
    p.sum[column] = sum;
}

template <typename T, int N>
void launch_partial(const column_sum_problem &p, int64_t blocks, liger_stream stream) {
    const dim3 grid(grid_size(p.cols, THREADS * N), (unsigned)blocks);
    partial_kernel<T, N><<<grid, THREADS, 0, (cudaStream_t)stream>>>(p, (p.rows + blocks - 1) / blocks);
}

template <typename T>
void launch(const column_sum_problem &p, int64_t blocks, liger_stream stream) {
    const uintptr_t bits =
        (uintptr_t)p.x | (uintptr_t)(p.stride * (int64_t)sizeof(T)) | (uintptr_t)(p.cols * (int64_t)sizeof(T));
    if (bits % PACK_BYTES == 0) launch_partial<T, pack_size<T>>(p, blocks, stream);
    else launch_partial<T, 1>(p, blocks, stream);
}

} // namespace

extern "C" liger_status column_sum_cuda(liger_context *context, const struct column_sum_problem *problem,
                                        liger_stream stream) {
    const column_sum_problem &p = *problem;
    if (p.cols == 0) return LIGER_OK;
    LIGER_ON_DEVICE(context, "column_sum");
    const int64_t blocks = column_sum_blocks(p.rows);
    if (blocks > 0) LIGER_FOR_FLOAT(p.dtype, T, launch<T>(p, blocks, stream))
    total_kernel<<<grid_size(p.cols, THREADS), THREADS, 0, (cudaStream_t)stream>>>(p, (int)blocks);
    return launched(context, "column_sum", stream);
}
