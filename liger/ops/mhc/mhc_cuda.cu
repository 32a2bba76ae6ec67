/* mhc_cuda.cu - pre-aggregation, post-aggregation and residual of hyper-connections on the GPU.
 *
 * Of N = 16384 tokens of 4 streams of 4096 in bf16 (x: 537 MB): pre moves 1.25 x, post and residual 2.25 x, its backward 3.5 x:
 * .16, .28 and .44 ms at 4.26 TB/s. A token's columns are 20 multiplications each forward and 40 backward, a fifth of that time:
 * what counts is many loads on their way. With four streams a thread has a pack of each of them and writes all results from one
 * read. The products over the columns (20 of a token) are added up in a warp by exchanges between halves, 31 shuffles
 * for up to 32 sums, then over the warps in order. Other numbers of streams read a token again from L1 and L2. */
#include "liger/core/kernel_table.h"
#include "liger/ops/mhc/mhc_streams.cuh"

namespace mhc {

/* ---- post-aggregation and residual --------------------------------------------------------------------------------- */

/* Four floats that are the same for the whole block, at 16 bytes. */
__device__ __forceinline__ void load_four(const float *from, float (&to)[4]) {
    const float4 four = __ldg((const float4 *)from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS) post_of_four(const __grid_constant__ mhc_post_res_forward_problem p) {
    const int64_t n = blockIdx.x;
    const T *x = (const T *)p.x + n * 4 * p.c;
    float h_post[4];
    load_four(p.h_post + n * 4, h_post);
    for (int64_t c = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * N; c < p.c;
         c += (int64_t)gridDim.y * blockDim.x * N) {
        pack<T, N> streams[4];
        float f[N];
#pragma unroll
        for (int s = 0; s < 4; s++) streams[s] = load_pack<T, N>(x + s * p.c + c);
        load_parameters<T>(p.f, p.f_dtype, n * p.c + c, f);
#pragma unroll
        for (int o = 0; o < 4; o++) {
            float sum[N], value[N], h[4];
            load_four(p.h_res + (n * 4 + o) * 4, h);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] = h_post[o] * f[i];
#pragma unroll
            for (int s = 0; s < 4; s++) {
                unpack(streams[s], value);
#pragma unroll
                for (int i = 0; i < N; i++) sum[i] = fmaf(h[s], value[i], sum[i]);
            }
            pack<T, N> out;
            repack(sum, out);
            store_pack<T, N>((T *)p.y + (n * 4 + o) * p.c + c, out);
        }
    }
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS) post_kernel(const __grid_constant__ mhc_post_res_forward_problem p) {
    const int64_t n = blockIdx.x;
    const T *x = (const T *)p.x + n * p.hc * p.c;
    for (int64_t c = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * N; c < p.c;
         c += (int64_t)gridDim.y * blockDim.x * N) {
        float f[N];
        load_parameters<T>(p.f, p.f_dtype, n * p.c + c, f);
        for (int64_t row = n * p.hc; row < (n + 1) * p.hc; row++) {
            const float *h = p.h_res + row * p.hc;
            float sum[N], value[N];
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] = p.h_post[row] * f[i];
#pragma unroll 4
            for (int64_t s = 0; s < p.hc; s++) {
                unpack(load_pack<T, N>(x + s * p.c + c), value);
#pragma unroll
                for (int i = 0; i < N; i++) sum[i] = fmaf(h[s], value[i], sum[i]);
            }
            pack<T, N> out;
            repack(sum, out);
            store_pack<T, N>((T *)p.y + row * p.c + c, out);
        }
    }
}

/* ---- its backward ---------------------------------------------------------------------------------------------------- */

/* Sums over a warp, of 32 values of each thread: lane l has that of x[l] in x[0]. Each exchange halves what a lane has to do with. */
template <int HALF = WARP / 2>
__device__ __forceinline__ void transpose_sums(float (&x)[WARP]) {
    const bool upper = threadIdx.x & HALF;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        const float kept = upper ? x[i + HALF] : x[i], sent = upper ? x[i] : x[i + HALF];
        x[i] = kept + __shfl_xor_sync(0xffffffffu, sent, HALF);
    }
    if constexpr (HALF > 1) transpose_sums<HALF / 2>(x);
}

/* A pack of columns: dx, df, and what they add to ⟨dy[o], x[i]⟩ at 4 · o + i and to ⟨dy[o], f⟩ at 16 + o. */
template <typename T, int N>
__device__ __forceinline__ void backward_of_four(const mhc_post_res_backward_problem &p, int64_t n, int64_t c,
                                                 const float (&h_res)[4][4], const float (&h_post)[4],
                                                 float (&dots)[WARP]) {
    pack<T, N> dy[4], x[4], out;
    float f[N], up[N], value[N], sum[N];
#pragma unroll
    for (int s = 0; s < 4; s++) {
        dy[s] = load_pack<T, N>((const T *)p.dy + (n * 4 + s) * p.c + c);
        x[s] = load_pack<T, N>((const T *)p.x + (n * 4 + s) * p.c + c);
    }
    load_parameters<T>(p.f, p.f_dtype, n * p.c + c, f);
#pragma unroll
    for (int s = 0; s < 4; s++) {
        unpack(x[s], value);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = 0;
#pragma unroll
        for (int o = 0; o < 4; o++) {
            unpack(dy[o], up);
            dots[o * 4 + s] = add_products(up, value, dots[o * 4 + s]);
#pragma unroll
            for (int i = 0; i < N; i++) sum[i] = fmaf(h_res[o][s], up[i], sum[i]);
        }
        repack(sum, out);
        if (p.dx) store_pack<T, N>((T *)p.dx + (n * 4 + s) * p.c + c, out);
    }
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] = 0;
#pragma unroll
    for (int o = 0; o < 4; o++) {
        unpack(dy[o], up);
        dots[16 + o] = add_products(up, f, dots[16 + o]);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] = fmaf(h_post[o], up[i], sum[i]);
    }
    if (p.df) store_parameters<T>(p.df, p.f_dtype, n * p.c + c, sum);
}

/* A block has a token. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS, 2)
    post_backward_of_four(const __grid_constant__ mhc_post_res_backward_problem p) {
    __shared__ float slots[WARPS][WARP];
    const int64_t n = blockIdx.x;
    const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    float h_res[4][4], h_post[4], dots[WARP] = {};
#pragma unroll
    for (int o = 0; o < 4; o++) load_four(p.h_res + (n * 4 + o) * 4, h_res[o]);
    load_four(p.h_post + n * 4, h_post);
    for (int64_t c = threadIdx.x * N; c < p.c; c += blockDim.x * N)
        backward_of_four<T, N>(p, n, c, h_res, h_post, dots);
    transpose_sums(dots);
    slots[threadIdx.x / WARP][lane] = dots[0];
    __syncthreads();
    if (threadIdx.x >= 20) return;
    float total = 0;
    for (int warp = 0; warp < warps; warp++) total += slots[warp][lane];
    if (lane < 16 && p.dh_res) p.dh_res[n * 16 + lane] = total;
    if (lane >= 16 && p.dh_post) p.dh_post[n * 4 + lane - 16] = total;
}

/* Any number of streams: columns first, then a product for each warp. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    post_backward_kernel(const __grid_constant__ mhc_post_res_backward_problem p) {
    const int64_t n = blockIdx.x, hc = p.hc;
    const T *dy = (const T *)p.dy + n * hc * p.c, *x = (const T *)p.x + n * hc * p.c;
    float up[N], value[N];
    for (int64_t c = threadIdx.x * N; c < p.c; c += blockDim.x * N)
        for (int64_t s = p.dx ? 0 : hc; s < (p.df ? hc + 1 : hc); s++) { /* the last one is f */
            float sum[N] = {};
            for (int64_t o = 0; o < hc; o++) {
                const float h = s < hc ? p.h_res[(n * hc + o) * hc + s] : p.h_post[n * hc + o];
                unpack(load_pack<T, N>(dy + o * p.c + c), up);
#pragma unroll
                for (int i = 0; i < N; i++) sum[i] = fmaf(h, up[i], sum[i]);
            }
            pack<T, N> out;
            repack(sum, out);
            if (s < hc) store_pack<T, N>((T *)p.dx + (n * hc + s) * p.c + c, out);
            else store_parameters<T>(p.df, p.f_dtype, n * p.c + c, sum);
        }
    const int streams = (int)hc; /* MHC_MOST_STREAMS at most */
    for (int pair = threadIdx.x / WARP; pair < streams * (streams + 1); pair += blockDim.x / WARP) {
        const int o = pair / (streams + 1), s = pair % (streams + 1);
        float sum = 0;
        if (s < hc ? p.dh_res == NULL : p.dh_post == NULL) continue;
        for (int64_t c = threadIdx.x % WARP * N; c < p.c; c += WARP * N) {
            unpack(load_pack<T, N>(dy + o * p.c + c), up);
            if (s < hc) unpack(load_pack<T, N>(x + s * p.c + c), value);
            else load_parameters<T>(p.f, p.f_dtype, n * p.c + c, value);
            sum = add_products(up, value, sum);
        }
        sum = warp_sum(sum);
        if (threadIdx.x % WARP != 0) continue;
        if (s < hc) p.dh_res[(n * hc + o) * hc + s] = sum;
        else p.dh_post[n * hc + o] = sum;
    }
}

/* ---- launches -------------------------------------------------------------------------------------------------------- */

/* Where coefficients are read four at a time. */
static bool four_at_once(int64_t hc, const float *h_post, const float *h_res) {
    return hc == 4 && pointer_is_packable(h_post) && pointer_is_packable(h_res);
}

template <typename T>
static void launch_post(const mhc_post_res_forward_problem &p, bool packable, cudaStream_t stream) {
    constexpr int N = pack_size<T>;
    const int64_t packs = packable ? p.c / N : p.c;
    const dim3 grid = blocks_of_columns(p.tokens, packs);
    const unsigned threads = threads_for(packs);
    if (packable && four_at_once(p.hc, p.h_post, p.h_res)) post_of_four<T, N><<<grid, threads, 0, stream>>>(p);
    else if (packable) post_kernel<T, N><<<grid, threads, 0, stream>>>(p);
    else post_kernel<T, 1><<<grid, threads, 0, stream>>>(p);
}
template <typename T>
static void launch_post_backward(const mhc_post_res_backward_problem &p, bool packable, cudaStream_t stream) {
    constexpr int N = pack_size<T>;
    const unsigned tokens = (unsigned)p.tokens, threads = threads_for(packable ? p.c / N : p.c);
    if (packable && four_at_once(p.hc, p.h_post, p.h_res))
        post_backward_of_four<T, N><<<tokens, threads, 0, stream>>>(p);
    else if (packable) post_backward_kernel<T, N><<<tokens, threads, 0, stream>>>(p);
    else post_backward_kernel<T, 1><<<tokens, threads, 0, stream>>>(p);
}

} // namespace mhc

extern "C" liger_status mhc_pre_forward_cuda(liger_context *context, const mhc_pre_forward_problem *problem,
                                             liger_stream given) {
    LIGER_ON_DEVICE(context, "mhc_pre_forward");
    mhc::launch_pre(*problem, (cudaStream_t)given);
    return launched(context, "mhc_pre_forward", given);
}

extern "C" liger_status mhc_pre_backward_cuda(liger_context *context, const mhc_pre_backward_problem *problem,
                                              liger_stream given) {
    LIGER_ON_DEVICE(context, "mhc_pre_backward");
    mhc::launch_pre_backward(*problem, (cudaStream_t)given);
    return launched(context, "mhc_pre_backward", given);
}

extern "C" liger_status mhc_post_res_forward_cuda(liger_context *context, const mhc_post_res_forward_problem *problem,
                                                  liger_stream given) {
    const mhc_post_res_forward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "mhc_post_res_forward");
    const bool packable = mhc::whole_packs(p.c, p.dtype) && pointer_is_packable(p.x) && pointer_is_packable(p.f) &&
                          pointer_is_packable(p.y);
    LIGER_FOR_FLOAT(p.dtype, T, mhc::launch_post<T>(p, packable, (cudaStream_t)given);)
    return launched(context, "mhc_post_res_forward", given);
}

extern "C" liger_status mhc_post_res_backward_cuda(liger_context *context, const mhc_post_res_backward_problem *problem,
                                                   liger_stream given) {
    const mhc_post_res_backward_problem &p = *problem;
    LIGER_ON_DEVICE(context, "mhc_post_res_backward");
    const bool packable = mhc::whole_packs(p.c, p.dtype) && pointer_is_packable(p.dy) && pointer_is_packable(p.x) &&
                          pointer_is_packable(p.f) && pointer_is_packable(p.dx) && pointer_is_packable(p.df);
    LIGER_FOR_FLOAT(p.dtype, T, mhc::launch_post_backward<T>(p, packable, (cudaStream_t)given);)
    return launched(context, "mhc_post_res_backward", given);
}
