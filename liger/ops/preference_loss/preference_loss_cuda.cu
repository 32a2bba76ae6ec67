/* preference_loss_cuda.cu - preference losses on CUDA: a block for each sequence adds it up, then a block for each writes its
 * gradient, for which it looks at its pair and at all counts; the first of them adds up the loss. No order depends on chance. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/dtype.cuh"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/reduce.cuh"
#include "liger/ops/preference_loss/preference_loss_formula.h"

namespace {

enum { THREADS = 256, WARPS = THREADS / WARP };

__device__ __forceinline__ bool counts(const preference_loss_problem &p, int64_t i) {
    return index_at(p.target, p.target_dtype, i) != p.ignore_index;
}
__device__ __forceinline__ bool counts_for_nll(const preference_loss_problem &p, int64_t i) {
    return p.nll_target ? index_at(p.nll_target, p.nll_target_dtype, i) != p.ignore_index : counts(p, i);
}

__global__ void __launch_bounds__(THREADS) sums_kernel(const __grid_constant__ preference_loss_problem p) {
    __shared__ float slots[2][4][MAX_WARPS];
    int turn = 0;
    for (int64_t s = blockIdx.x; s < p.sequences; s += gridDim.x, turn ^= 1) {
        float sums[4] = {}; /* as in preference_sums */
        for (int64_t i = s * p.tokens + threadIdx.x; i < (s + 1) * p.tokens; i += THREADS) {
            if (counts(p, i)) sums[0] += p.log_prob[i], sums[1] += 1;
            if (s < p.texts && counts_for_nll(p, i)) sums[2] += p.log_prob[i], sums[3] += 1;
        }
        group_sums(sums, slots[turn], 0, WARPS);
        if (p.average && sums[1] > 0) sums[0] /= sums[1];
        if (threadIdx.x == 0) p.sums[s] = {sums[0], sums[1], sums[2], sums[3]};
    }
}

/* All of what nll counts, and in the first block all terms. */
__device__ __forceinline__ void totals(const preference_loss_problem &p, float (&sums)[3]) {
    __shared__ float slots[3][MAX_WARPS];
    for (int64_t s = threadIdx.x; s < p.texts; s += THREADS) sums[1] += p.sums[s].nll, sums[2] += p.sums[s].nll_tokens;
    if (blockIdx.x == 0)
        for (int64_t i = threadIdx.x; i < p.terms; i += THREADS) sums[0] += term_of(&p, i).loss;
    group_sums(sums, slots, 0, WARPS);
}

__global__ void __launch_bounds__(THREADS) results_kernel(const __grid_constant__ preference_loss_problem p) {
    float sums[3] = {};
    totals(p, sums);
    if (blockIdx.x == 0 && threadIdx.x == 0) store_losses(&p, sums[0], sums[1], sums[2]);
    const float upstream = p.upstream ? *p.upstream : 1.0f;
    const float each = nll_slope(&p, sums[2], upstream);
    for (int64_t s = blockIdx.x; s < p.sequences; s += gridDim.x) {
        if (threadIdx.x == 0) store_sequence(&p, s);
        if (p.d_log_prob == NULL) continue;
        const float slope = token_slope(&p, s, upstream);
        for (int64_t i = s * p.tokens + threadIdx.x; i < (s + 1) * p.tokens; i += THREADS) {
            const float nll = s < p.texts && counts_for_nll(p, i) ? each : 0.0f;
            p.d_log_prob[i] = (counts(p, i) ? slope : 0.0f) + nll;
        }
    }
}

} // namespace

extern "C" liger_status preference_loss_cuda(liger_context *context, const preference_loss_problem *problem,
                                             liger_stream stream) {
    LIGER_ON_DEVICE(context, "preference_loss");
    const unsigned grid = grid_size(problem->sequences, 1);
    sums_kernel<<<grid, THREADS, 0, (cudaStream_t)stream>>>(*problem);
    results_kernel<<<grid, THREADS, 0, (cudaStream_t)stream>>>(*problem);
    return launched(context, "preference_loss", stream);
}
