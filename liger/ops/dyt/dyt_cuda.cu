/* dyt_cuda.cu - dynamic tanh on the GPU. No row needs its sum, so a thread keeps a pack of columns, with their parameters in
 * registers, and walks down the rows; several rows are on their way at once. Backward, it adds up the gradients of its
 * parameters on the way; one partial row per block of rows is then added in order. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/approx.cuh"
#include "liger/cuda/row_norm_parts.cuh"
#include "liger/ops/dyt/dyt_problem.h"

namespace {

enum { THREADS = DYT_THREADS, FORWARD_ROWS = 4, BACKWARD_ROWS = 2 /* of a thread, on their way */ };

/* ---- tanh ------------------------------------------------------------------------------------------------------- */

/* For types of 16 bits: within 2^-19 of itself. Below |u| = 1/8 the quotient would cancel, and the series is enough. */
__device__ __forceinline__ float tanh_below_an_eighth(float u) {
    const float z = u * u;
    return u * fmaf(z, fmaf(z, 2.0f / 15.0f, -1.0f / 3.0f), 1.0f);
}

template <typename T>
__device__ __forceinline__ float tanh_of(float u) {
    if constexpr (sizeof(T) == sizeof(float)) return tanhf(u);
    const float e = exp2_approx(fabsf(u) * 2.885390043258667f);
    const float large = copysignf(fmaf(reciprocal_approx(e + 1.0f), -2.0f, 1.0f), u);
    return fabsf(u) < 0.125f ? tanh_below_an_eighth(u) : large;
}

/* tanh and 1 - tanh², from the halves ½(1 ± tanh|u|), so that the slope does not cancel. */
template <typename T>
struct tanh_and_slope {
    float tanh, slope;
    __device__ __forceinline__ explicit tanh_and_slope(float u) {
        constexpr bool WIDE = sizeof(T) == sizeof(float);
        const float e = WIDE ? expf(-2.0f * fabsf(u)) : exp2_approx(fabsf(u) * -2.885390043258667f);
        const float larger = reciprocal_approx(1.0f + e), smaller = e * larger;
        slope = 4.0f * smaller * larger;
        if constexpr (WIDE) tanh = tanhf(u);
        else tanh = fabsf(u) < 0.125f ? tanh_below_an_eighth(u) : copysignf(larger - smaller, u);
    }
};

/* ---- kernels ---------------------------------------------------------------------------------------------------- */

/* Block (columns, rows at once), grid (columns, blocks of rows). */
template <typename P, int N>
struct place {
    int64_t c, row, step;
    bool live;
    __device__ __forceinline__ explicit place(const P &p)
        : c(((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N), row((int64_t)blockIdx.y * blockDim.y + threadIdx.y),
          step((int64_t)gridDim.y * blockDim.y), live(c < p.cols) {}
};

template <typename T, int N>
__global__ void __launch_bounds__(THREADS, 4) forward_kernel(const __grid_constant__ dyt_forward_problem p) {
    const place<dyt_forward_problem, N> at(p);
    if (!at.live) return;
    const float alpha = load_as(p.alpha, p.alpha_dtype, 0);
    float gamma[N], beta[N] = {};
    load_parameters<T>(p.gamma, p.weight_dtype, at.c, gamma);
    if (p.beta) load_parameters<T>(p.beta, p.weight_dtype, at.c, beta);
    for (int64_t r = at.row; r < p.rows; r += FORWARD_ROWS * at.step) {
        pack<T, N> held[FORWARD_ROWS];
#pragma unroll
        for (int k = 0; k < FORWARD_ROWS; k++)
            if (r + k * at.step < p.rows) held[k] = load_pack<T, N>(row_at<const T>(p.x, r + k * at.step) + at.c);
#pragma unroll
        for (int k = 0; k < FORWARD_ROWS; k++) {
            if (r + k * at.step >= p.rows) break;
            float x[N];
            unpack(held[k], x);
#pragma unroll
            for (int i = 0; i < N; i++) x[i] = fmaf(gamma[i], tanh_of<T>(alpha * x[i]), beta[i]);
            repack(x, held[k]);
            store_pack<T, N>(row_at<T>(p.y, r + k * at.step) + at.c, held[k]);
        }
    }
}

/* The sums of the rows that a block has at once, in order, as the block's partial row. */
template <int N>
__device__ __forceinline__ void store_partial(const dyt_backward_problem &p, int which, const float (&sum)[N],
                                              float (&combine)[THREADS * N]) {
    const int width = blockDim.x * N;
    const int64_t first = (int64_t)blockIdx.x * width;
    float *partial = p.workspace + (which * p.partials + blockIdx.y) * p.cols + first;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) combine[threadIdx.y * width + threadIdx.x * N + i] = sum[i];
    __syncthreads();
    for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < width && first + c < p.cols; c += THREADS) {
        float total = 0;
        for (int y = 0; y < (int)blockDim.y; y++) total += combine[y * width + c];
        partial[c] = total;
    }
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS, DYT_BLOCKS) backward_kernel(const __grid_constant__ dyt_backward_problem p) {
    __shared__ float combine[THREADS * N], slots[1][MAX_WARPS];
    const place<dyt_backward_problem, N> at(p);
    const float alpha = load_as(p.alpha, p.alpha_dtype, 0);
    float gamma[N], dgamma[N] = {}, dbeta[N] = {}, dalpha[1] = {};
    if (at.live) load_parameters<T>(p.gamma, p.weight_dtype, at.c, gamma);
    let_next_kernel_start();
    for (int64_t r = at.row; at.live && r < p.rows; r += BACKWARD_ROWS * at.step) {
        pack<T, N> x_held[BACKWARD_ROWS], dy_held[BACKWARD_ROWS];
#pragma unroll
        for (int k = 0; k < BACKWARD_ROWS; k++) {
            if (r + k * at.step >= p.rows) break;
            const int64_t row = from_the_end(p.rows, r + k * at.step);
            x_held[k] = load_pack<T, N>(row_at<const T>(p.x, row) + at.c);
            dy_held[k] = load_pack<T, N>(row_at<const T>(p.dy, row) + at.c);
        }
#pragma unroll
        for (int k = 0; k < BACKWARD_ROWS; k++) {
            if (r + k * at.step >= p.rows) break;
            float x[N], dy[N];
            unpack(x_held[k], x);
            unpack(dy_held[k], dy);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const tanh_and_slope<T> of(alpha * x[i]);
                const float u = dy[i] * gamma[i] * of.slope;
                dgamma[i] = fmaf(dy[i], of.tanh, dgamma[i]);
                dbeta[i] += dy[i];
                dalpha[0] = fmaf(u, x[i], dalpha[0]);
                x[i] = alpha * u;
            }
            repack(x, x_held[k]);
            const int64_t row = from_the_end(p.rows, r + k * at.step);
            if (p.dx.data) store_pack<T, N>(row_at<T>(p.dx, row) + at.c, x_held[k]);
        }
    }
    if (p.dgamma) store_partial<N>(p, 0, dgamma, combine);
    if (p.dbeta) store_partial<N>(p, 1, dbeta, combine);
    if (p.dalpha == NULL) return;
    /* blocks of several rows are numbered by their threads, as warps are */
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    dalpha[0] = warp_sum(dalpha[0]);
    if (thread % WARP == 0) slots[0][thread / WARP] = dalpha[0];
    __syncthreads();
    if (thread >= WARP) return;
    const float total = warp_sum(thread < THREADS / WARP ? slots[0][thread] : 0.0f);
    float *totals = p.workspace + 2 * p.partials * p.cols;
    if (thread == 0) totals[(int64_t)blockIdx.y * gridDim.x + blockIdx.x] = total;
}

/* Block (x, y): 32 columns of dgamma, of dbeta, or all of dalpha. */
__global__ void __launch_bounds__(1024) add_kernel(const __grid_constant__ dyt_backward_problem p, int totals) {
    __shared__ float sums[32][33];
    const float *partials = p.workspace + blockIdx.y * p.partials * p.cols;
    void *const to = blockIdx.y == 0 ? p.dgamma : blockIdx.y == 1 ? p.dbeta : p.dalpha;
    wait_for_previous_kernel();
    if (to == NULL || (blockIdx.y == 2 && blockIdx.x > 0)) return;
    if (blockIdx.y < 2) row_norm::add_partial_columns(sums, partials, (int)p.partials, p.cols, to, p.weight_dtype);
    else row_norm::add_partial_columns(sums, partials, totals, 1, to, p.alpha_dtype);
}

/* ---- launches --------------------------------------------------------------------------------------------------- */

/* Narrow rows share a block. */
dim3 block_for(int64_t packs) {
    unsigned x = THREADS;
    while (x > 1 && (int64_t)x / 2 >= packs) x /= 2;
    return dim3(x, THREADS / x);
}

template <typename T, int N>
void launch_forward(const liger_context *context, const dyt_forward_problem &p, cudaStream_t stream) {
    const dim3 block = block_for(p.cols / N);
    const unsigned across = grid_size(p.cols / N, block.x);
    const int64_t most = context->cuda->multiprocessors * 4 / across;
    const dim3 grid(across, grid_size(p.rows, block.y, most < 1 ? 1 : most));
    forward_kernel<T, N><<<grid, block, 0, stream>>>(p);
}

template <typename T, int N>
cudaError_t launch_backward(const liger_context *context, const dyt_backward_problem &p, cudaStream_t stream) {
    const dim3 block = block_for(p.cols / N), grid(grid_size(p.cols / N, block.x), (unsigned)p.partials);
    backward_kernel<T, N><<<grid, block, 0, stream>>>(p);
    if (p.workspace == NULL) return cudaSuccess;
    const dim3 sums(grid_size(p.cols, 32), p.dalpha ? 3 : 2);
    return launch_next(context, add_kernel, sums, dim3(32, 32), stream, p, (int)(grid.x * grid.y));
}

} // namespace

extern "C" liger_status dyt_forward_cuda(liger_context *context, const dyt_forward_problem *problem,
                                         liger_stream stream) {
    const dyt_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "dyt_forward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) &&
                          rows_are_packable(p.y, element) && pointer_is_packable(p.gamma) &&
                          pointer_is_packable(p.beta);
    LIGER_FOR_FLOAT(p.dtype, T, if (packable) launch_forward<T, pack_size<T>>(context, p, (cudaStream_t)stream);
                    else launch_forward<T, 1>(context, p, (cudaStream_t)stream));
    return launched(context, "dyt_forward", stream);
}

extern "C" liger_status dyt_backward_cuda(liger_context *context, const dyt_backward_problem *problem,
                                          liger_stream stream) {
    const dyt_backward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "dyt_backward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.x, element) &&
                          rows_are_packable(p.dy, element) && rows_are_packable(p.dx, element) &&
                          pointer_is_packable(p.gamma);
    cudaError_t error = cudaSuccess;
    LIGER_FOR_FLOAT(p.dtype, T,
                    if (packable) error = launch_backward<T, pack_size<T>>(context, p, (cudaStream_t)stream);
                    else error = launch_backward<T, 1>(context, p, (cudaStream_t)stream));
    LIGER_TRY(cuda_status(error, "dyt_backward"));
    return launched(context, "dyt_backward", stream);
}
