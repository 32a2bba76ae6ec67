/* mhc_coeffs_backward_cuda.cu - the coefficients of hyper-connections on the GPU, backward.
 *
 * Of N = 16384 tokens of 4 streams of 4096 in bf16, x 537 MB:
 *   1. ⟨dx_in, x⟩ of each stream: 1.25 x, .16 ms at 4.26 TB/s.
 *   2. each token's dlogits: 4 threads a token repeat Sinkhorn's iteration in registers, keep what each step has divided by (10 MB,
 *      which stay in L2) and go back, undoing the divisions: 10 us. Σ dlogits and Σ dlogits · mix are added up beside it.
 *   3. dx and dphi from one read: x, dx_so_far, dx_in (.25 x) and dx move 3.25 x, .41 ms. rstd · dmix is f32, and so are its
 *      products with phi and x: 48 multiplications for each element of x, 12.9 G, .45 ms on the H200's 128 of a multiprocessor and
 *      cycle: both bounds are close, and this one is the larger. On tensor cores the factor would have to be three bf16s.
 *      A thread has two columns of x, their 48 numbers of phi and 48 sums for dphi in registers, and goes through tokens, which
 *      come in two stages of 16 through shared memory: 24 KB of them are on their way while 24 KB are worked on, in three blocks a
 *      multiprocessor. 64 blocks along k times 6 along the tokens are one wave.
 *   4. dphi is the sum of the 6 in order: 9 MB, 5 us.
 * Prediction: .8 ms. */
#include "liger/core/kernel_table.h"
#include "liger/ops/mhc/mhc_coeffs_apply.cuh"
#include "liger/ops/mhc/mhc_dlogits.cuh"

namespace mhc {

/* ---- what was added up in parts --------------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(THREADS)
    add_dphi(const __grid_constant__ problem p, const __grid_constant__ parts_of parts) {
    const int64_t count = p.hc * p.c * mhc_m(p.hc), i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float sum = 0;
    if (i >= count) return;
    for (int64_t adder = 0; adder < parts.adders; adder++) sum += p.workspace[parts.dphi + adder * count + i];
    store_as(p.dphi, p.phi_dtype, i, sum);
}

/* One block: 32 columns at a time, 32 fixed interleaved sums of each, then those in order. */
__global__ void __launch_bounds__(1024)
    add_units(const __grid_constant__ problem p, const __grid_constant__ parts_of parts) {
    __shared__ float sums[32][33];
    const int64_t m_count = mhc_m(p.hc);
    float *const totals = p.workspace + parts.totals;
    for (int64_t first = 0; first < 2 * m_count; first += 32) {
        const int64_t column = first + threadIdx.x;
        float sum = 0;
        if (column < 2 * m_count)
            for (int64_t unit = threadIdx.y; unit < parts.units; unit += 32)
                sum += p.workspace[parts.sums + unit * 2 * m_count + column];
        sums[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        const float total = warp_sum(sums[threadIdx.x][threadIdx.y]); /* transposed: warp y owns column y */
        if (threadIdx.x == 0 && first + threadIdx.y < 2 * m_count) totals[first + threadIdx.y] = total;
        __syncthreads();
    }
    for (int64_t m = threadIdx.y * 32 + threadIdx.x; p.db && m < m_count; m += 1024) p.db[m] = totals[m];
    if (threadIdx.y >= 3) return;
    const int64_t begin = threadIdx.y * p.hc, end = threadIdx.y == 2 ? m_count : begin + p.hc;
    float *const dalpha = threadIdx.y == 0 ? p.dalpha_pre : threadIdx.y == 1 ? p.dalpha_post : p.dalpha_res;
    float sum = 0;
    for (int64_t m = begin + threadIdx.x; m < end; m += 32) sum += totals[m_count + m];
    sum = warp_sum(sum);
    if (threadIdx.x == 0 && dalpha) *dalpha = sum;
}

} // namespace mhc

extern "C" liger_status mhc_coeffs_backward_cuda(liger_context *context, const mhc_coeffs_backward_problem *problem,
                                                 liger_stream given) {
    const mhc_coeffs_backward_problem &p = *problem;
    const cudaStream_t stream = (cudaStream_t)given;
    cudaError_t error = cudaSuccess;
    LIGER_ON_DEVICE(context, "mhc_coeffs_backward");
    const mhc_backward_parts parts = mhc_cut_backward(context->multiprocessors, p.tokens, p.hc, p.c, p.formula.steps);
    if (p.tokens > 0) mhc::launch_dlogits(p, parts, stream);
    if (p.dx || p.dphi) LIGER_FOR_FLOAT(p.dtype, T, error = mhc::launch_apply<T>(context, p, parts, stream);)
    LIGER_TRY(cuda_status(error, "mhc_coeffs_backward"));
    if (p.dphi) mhc::add_dphi<<<grid_size(p.hc * p.c * mhc_m(p.hc), mhc::THREADS), mhc::THREADS, 0, stream>>>(p, parts);
    if (p.db || p.dalpha_pre || p.dalpha_post || p.dalpha_res) mhc::add_units<<<1, dim3(32, 32), 0, stream>>>(p, parts);
    return launched(context, "mhc_coeffs_backward", given);
}
