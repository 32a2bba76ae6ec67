/* policy_loss_cuda.cu - a policy's loss on CUDA: sequences, the batch, the gradient. A block has one sequence at a time. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/block_total.cuh"
#include "liger/cuda/launch.cuh"
#include "liger/ops/policy_loss/policy_loss_terms.h"

namespace {

enum { MOST_THREADS = 512 };

__device__ __forceinline__ void add_up(policy_sums &sum) {
    sum.loss = block_total(sum.loss);
    sum.kl = block_total(sum.kl);
    sum.clipped = block_total(sum.clipped);
}

__global__ void __launch_bounds__(MOST_THREADS) sequences_kernel(const __grid_constant__ policy_loss_problem p) {
    for (int64_t i = blockIdx.x; i < p.sequences; i += gridDim.x) {
        const policy_row row = policy_row_of(&p, i);
        policy_sums sum = policy_before(&p, &row, threadIdx.x, blockDim.x);
        sum.tokens = block_total(sum.tokens);
        sum.held = block_total(sum.held);
        sum.held = policy_held(&p, row.advantage, &sum);
        policy_add_terms(&p, &row, threadIdx.x, blockDim.x, &sum);
        add_up(sum);
        sum.by_weight = block_total(sum.by_weight);
        if (threadIdx.x == 0) policy_sequences(&p)[i] = sum;
    }
}

__global__ void __launch_bounds__(MOST_THREADS) batch_kernel(const __grid_constant__ policy_loss_problem p) {
    policy_sums sum = policy_add_sequences(&p, threadIdx.x, blockDim.x);
    sum.tokens = block_total(sum.tokens);
    add_up(sum);
    if (threadIdx.x == 0) policy_finish(&p, &sum);
}

__global__ void __launch_bounds__(MOST_THREADS) gradient_kernel(const __grid_constant__ policy_loss_problem p) {
    for (int64_t i = blockIdx.x; i < p.sequences; i += gridDim.x) policy_gradient(&p, i, threadIdx.x, blockDim.x);
}

} // namespace

extern "C" liger_status policy_loss_cuda(liger_context *context, const policy_loss_problem *problem,
                                         liger_stream stream) {
    const policy_loss_problem &p = *problem;
    LIGER_ON_DEVICE(context, "policy_loss");
    const unsigned blocks = grid_size(p.sequences, 1);
    const int threads = p.tokens < MOST_THREADS ? round_up_to_warp(p.tokens + (p.tokens == 0)) : MOST_THREADS;
    sequences_kernel<<<blocks, threads, 0, (cudaStream_t)stream>>>(p);
    batch_kernel<<<1, MOST_THREADS, 0, (cudaStream_t)stream>>>(p);
    if (p.d_log_prob.data) gradient_kernel<<<blocks, threads, 0, (cudaStream_t)stream>>>(p);
    return launched(context, "policy_loss", stream);
}
