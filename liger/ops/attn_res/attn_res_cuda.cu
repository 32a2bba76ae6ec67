/* attn_res_cuda.cu - attn_res on the GPU. A block of threads has a row of all blocks of the model at a time: each warp takes
 * another block of the model, so that many loads are on their way and no warp waits for others until all scores are there. The
 * row is read from memory once, and again from L1 or L2, which the grid is small enough for. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/reduce.cuh"
#include "liger/ops/attn_res/attn_res_problem.h"

namespace {

enum { THREADS = 256, WARPS = THREADS / WARP };

/* query · norm */
template <typename T, int N, typename P>
__device__ __forceinline__ void load_u(const P &p, int64_t c, float (&u)[N]) {
    float norm[N];
    load_parameters<T>(p.query, p.query_dtype, c, u);
    load_parameters<T>(p.norm, p.norm_dtype, c, norm);
#pragma unroll
    for (int i = 0; i < N; i++) u[i] *= norm[i];
}

/* x̂ as it meets the norm's weight. */
template <typename T, int N>
__device__ __forceinline__ void round_normals(liger_dtype dtype, int32_t to, float (&x)[N]) {
    if (to == LIGER_F32) return;
    if ((liger_dtype)to == dtype) return round_all<T>(x);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = round_to_dtype((liger_dtype)to, x[i]);
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* ⟨query, k⟩ of one block of the model, by one warp. */
template <typename T, int N>
__device__ __forceinline__ void score_of(const attn_res_forward_problem &p, int64_t row) {
    const T *v = row_at<T>(p.v, row);
    const int lane = threadIdx.x % WARP;
    float squares = 0, dot = 0;
#pragma unroll 4
    for (int64_t c = lane * N; c < p.cols; c += WARP * N) {
        float x[N];
        unpack(load_pack<T, N>(v + c), x);
#pragma unroll
        for (int i = 0; i < N; i++) squares = fmaf(x[i], x[i], squares);
    }
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / (float)p.cols + p.epsilon);
#pragma unroll 2
    for (int64_t c = lane * N; c < p.cols; c += WARP * N) {
        float x[N], u[N];
        unpack(load_pack<T, N>(v + c), x);
        load_u<T, N>(p, c, u);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] *= rstd;
        round_normals<T>(p.dtype, p.normal_dtype, x);
#pragma unroll
        for (int i = 0; i < N; i++) dot = fmaf(u[i], x[i], dot);
    }
    dot = warp_sum(dot);
    if (lane == 0) p.rstd[row] = rstd, p.alpha[row] = dot;
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS, ATTN_RES_BLOCKS) mix(const __grid_constant__ attn_res_forward_problem p) {
    const int64_t end = p.blocks * p.rows;
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
        for (int64_t block = threadIdx.x / WARP; block < p.blocks; block += WARPS)
            score_of<T, N>(p, block * p.rows + r);
        __syncthreads(); /* the scores are there for all threads */
        float most = -INFINITY, total = 0;
        for (int64_t row = r; row < end; row += p.rows)
            most = fmaxf(most, p.alpha[row]); /* a NaN is found in the sum */
        for (int64_t row = r; row < end; row += p.rows) total += expf(p.alpha[row] - most);
        const float share = 1.0f / total;
        for (int64_t c = threadIdx.x * N; c < p.cols; c += THREADS * N) {
            float sum[N] = {};
#pragma unroll 4
            for (int64_t row = r; row < end; row += p.rows) {
                const float alpha = expf(p.alpha[row] - most) * share;
                float x[N];
                unpack(load_pack<T, N>(row_at<T>(p.v, row) + c), x);
#pragma unroll
                for (int i = 0; i < N; i++) sum[i] = fmaf(alpha, x[i], sum[i]);
            }
            pack<T, N> out;
            repack(sum, out);
            store_whole_pack<T, N>(row_at<T>(p.h, r) + c, out);
        }
        __syncthreads(); /* nobody reads scores any more */
        for (int64_t block = threadIdx.x; block < p.blocks; block += THREADS) {
            float &alpha = p.alpha[block * p.rows + r];
            alpha = expf(alpha - most) * share;
        }
    }
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* ⟨dh, v⟩ and mean(u·x̂) of one block of the model, by one warp. */
template <typename T, int N>
__device__ __forceinline__ void dots_of(const attn_res_backward_problem &p, const T *dh, int64_t row) {
    const T *v = row_at<T>(p.v, row);
    const float rstd = p.rstd[row];
    const int lane = threadIdx.x % WARP;
    float along = 0, mean = 0;
#pragma unroll 2
    for (int64_t c = lane * N; c < p.cols; c += WARP * N) {
        float x[N], up[N], u[N];
        unpack(load_pack<T, N>(v + c), x);
        unpack(load_pack<T, N>(dh + c), up);
        load_u<T, N>(p, c, u);
#pragma unroll
        for (int i = 0; i < N; i++) {
            along = fmaf(up[i], x[i], along);
            mean = fmaf(u[i], x[i] * rstd, mean);
        }
    }
    along = warp_sum(along), mean = warp_sum(mean) / (float)p.cols;
    if (lane == 0) p.workspace[row] = along, p.workspace[p.blocks * p.rows + row] = mean;
}

/* A pack of dv of one block of the model, and its part of Σ ds·x̂. v is read before dv is written: they may be one. */
template <typename T, int N>
__device__ __forceinline__ void backward_pack(const attn_res_backward_problem &p, int64_t row, int64_t c, float total,
                                              const float (&up)[N], const float (&u)[N], float (&sum)[N]) {
    const float rstd = p.rstd[row], alpha = p.alpha[row], ds = alpha * (p.workspace[row] - total);
    const float mean = p.workspace[p.blocks * p.rows + row];
    float x[N], rounded[N];
    unpack(load_pack<T, N>(row_at<T>(p.v, row) + c), x);
#pragma unroll
    for (int i = 0; i < N; i++) rounded[i] = x[i] *= rstd;
    round_normals<T>(p.dtype, p.normal_dtype, rounded);
#pragma unroll
    for (int i = 0; i < N; i++) {
        sum[i] = fmaf(ds, rounded[i], sum[i]);
        x[i] = fmaf(alpha, up[i], ds * rstd * fmaf(-mean, x[i], u[i]));
    }
    if (p.dv.data == NULL) return;
    pack<T, N> out;
    repack(x, out);
    store_whole_pack<T, N>(row_at<T>(p.dv, row) + c, out);
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS, ATTN_RES_BLOCKS)
    backward_rows(const __grid_constant__ attn_res_backward_problem p) {
    const int64_t end = p.blocks * p.rows;
    float *all =
        p.workspace + attn_res_sums(p.blocks, p.rows) + blockIdx.x * p.cols; /* each thread has its own columns of it */
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
        const T *dh = row_at<T>(p.dh, r);
        float total = 0;
        for (int64_t block = threadIdx.x / WARP; block < p.blocks; block += WARPS)
            dots_of<T, N>(p, dh, block * p.rows + r);
        __syncthreads();
        for (int64_t row = r; row < end; row += p.rows) total = fmaf(p.alpha[row], p.workspace[row], total);
        for (int64_t c = threadIdx.x * N; c < p.cols; c += THREADS * N) {
            float up[N], u[N], sum[N] = {};
            unpack(load_pack<T, N>(dh + c), up);
            load_u<T, N>(p, c, u);
#pragma unroll 2
            for (int64_t row = r; row < end; row += p.rows) backward_pack<T, N>(p, row, c, total, up, u, sum);
            pack<float, N> out = {};
            if (r != blockIdx.x) out = load_pack<float, N>(all + c);
#pragma unroll
            for (int i = 0; i < N; i++) out.value[i] += sum[i];
            store_whole_pack<float, N>(all + c, out);
        }
    }
}

/* 32 columns a block: 32 fixed interleaved sums, then those in order. */
__global__ void __launch_bounds__(1024) finish_columns(const __grid_constant__ attn_res_backward_problem p) {
    __shared__ float sums[32][33];
    const int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
    const float *all = p.workspace + attn_res_sums(p.blocks, p.rows);
    float sum = 0;
    if (c < p.cols)
        for (int64_t unit = threadIdx.y; unit < p.units; unit += 32) sum += all[unit * p.cols + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    const float total = warp_sum(sums[threadIdx.x][threadIdx.y]); /* transposed: warp y owns column y */
    const int64_t column = (int64_t)blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x != 0 || column >= p.cols) return;
    const float query = load_as(p.query, p.query_dtype, column), norm = load_as(p.norm, p.norm_dtype, column);
    if (p.dquery) store_as(p.dquery, p.query_dtype, column, norm * total);
    if (p.dnorm) store_as(p.dnorm, p.norm_dtype, column, query * total);
}

/* ---- launches --------------------------------------------------------------------------------------------------- */

template <typename T, int N>
void launch_forward(const liger_context *context, const attn_res_forward_problem &p, cudaStream_t stream) {
    const unsigned grid = (unsigned)attn_res_units(context->multiprocessors, p.rows);
    mix<T, N><<<grid, THREADS, 0, stream>>>(p);
}
template <typename T, int N>
void launch_backward(const attn_res_backward_problem &p, cudaStream_t stream) {
    backward_rows<T, N><<<(unsigned)p.units, THREADS, 0, stream>>>(p);
}

} // namespace

extern "C" liger_status attn_res_forward_cuda(liger_context *context, const attn_res_forward_problem *problem,
                                              liger_stream given) {
    const attn_res_forward_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    LIGER_ON_DEVICE(context, "attn_res_forward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.v, element) &&
                          rows_are_packable(p.h, element) && pointer_is_packable(p.query) &&
                          pointer_is_packable(p.norm);
    LIGER_FOR_FLOAT(p.dtype, T, {
        if (packable) launch_forward<T, pack_size<T>>(context, p, stream);
        else launch_forward<T, 1>(context, p, stream);
    })
    return launched(context, "attn_res_forward", given);
}

extern "C" liger_status attn_res_backward_cuda(liger_context *context, const attn_res_backward_problem *problem,
                                               liger_stream given) {
    const attn_res_backward_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    LIGER_ON_DEVICE(context, "attn_res_backward");
    const size_t element = liger_dtype_size(p.dtype);
    const bool packable = p.cols * element % PACK_BYTES == 0 && rows_are_packable(p.v, element) &&
                          rows_are_packable(p.dh, element) && rows_are_packable(p.dv, element) &&
                          pointer_is_packable(p.query) && pointer_is_packable(p.norm);
    if (p.rows > 0)
        LIGER_FOR_FLOAT(p.dtype, T, {
            if (packable) launch_backward<T, pack_size<T>>(p, stream);
            else launch_backward<T, 1>(p, stream);
        })
    if (p.dquery || p.dnorm) finish_columns<<<grid_size(p.cols, 32), dim3(32, 32), 0, stream>>>(p);
    return launched(context, "attn_res_backward", given);
}
