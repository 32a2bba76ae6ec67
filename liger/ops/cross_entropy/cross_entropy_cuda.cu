/* cross_entropy_cuda.cu - cross entropy on CUDA: count, rows, reduce, and which row kernel a shape gets. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/block_total.cuh"
#include "liger/cuda/launch.cuh"
#include "liger/cuda/shared_memory.cuh"
#include "liger/ops/cross_entropy/cross_entropy_loss.cuh"
#include "liger/ops/cross_entropy/cross_entropy_resident.cuh"
#include "liger/ops/cross_entropy/cross_entropy_streamed.cuh"

namespace cross_entropy {

/* ---- count and reduce: one block, so that the order of every sum is fixed ------------------------------------------ */

enum { ONE_BLOCK = 1024 };

__global__ void __launch_bounds__(ONE_BLOCK) count_kernel(const cross_entropy_count_problem p) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    int valid = 0;
    float weight_sum = 0.0f, class_total = 0.0f;
#pragma unroll 8
    for (int64_t r = threadIdx.x; r < p.rows; r += ONE_BLOCK) {
        const int64_t y = index_at(p.target, p.target_dtype, r);
        if (y == p.ignore_index) continue;
        valid++;
        if (p.weight && y >= 0 && y < p.vocab) weight_sum += p.weight[y];
    }
    if (p.weight) {
#pragma unroll 8
        for (int64_t j = threadIdx.x; j < p.vocab; j += ONE_BLOCK) class_total += p.weight[j];
    }
    const float valid_rows = (float)block_total((long long)valid);
    weight_sum = block_total(weight_sum);
    class_total = block_total(class_total);
    if (threadIdx.x == 0) *p.counts = {valid_rows, p.weight ? weight_sum : valid_rows, class_total, 0.0f};
}

__device__ float sum_rows(const float *values, int64_t rows) {
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t r = threadIdx.x; r < rows; r += ONE_BLOCK) sum += values[r];
    return block_total(sum);
}

__global__ void __launch_bounds__(ONE_BLOCK) reduce_kernel(const cross_entropy_reduce_problem p) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const float loss = p.loss ? sum_rows(p.loss, p.rows) : 0.0f;
    const float z = p.z_loss ? sum_rows(p.z_loss, p.rows) : 0.0f;
    const float hits = p.accuracy ? sum_rows(p.accuracy, p.rows) : 0.0f;
    if (threadIdx.x != 0) return;
    if (p.loss && p.loss_out) store_as(p.loss_out, p.loss_dtype, 0, loss);
    if (p.z_loss && p.z_loss_out) store_as(p.z_loss_out, p.z_loss_dtype, 0, z);
    if (p.accuracy && p.accuracy_out) *p.accuracy_out = p.rows > 0 ? hits / p.counts->valid : 0.0f;
}

__global__ void round_rows_kernel(const cross_entropy_reduce_problem p) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int64_t r = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (r >= p.rows) return;
    if (p.loss && p.loss_out) store_as(p.loss_out, p.loss_dtype, r, p.loss[r]);
    if (p.z_loss && p.z_loss_out) store_as(p.z_loss_out, p.z_loss_dtype, r, p.z_loss[r]);
    if (p.accuracy && p.accuracy_out) p.accuracy_out[r] = p.accuracy[r];
}

/* ---- rows: which kernel -------------------------------------------------------------------------------------------- */

template <typename T>
static cudaError_t launch_rows(const liger_context *context, const problem &p, cudaStream_t stream) {
    const bool options = p.softcap > 0 || p.label_smoothing > 0 || p.accuracy || p.predicted;
    const bool packs = matrix_is_packable(p.logits, p.logits_stride, p.vocab, sizeof(T)) &&
                       matrix_is_packable(p.dlogits, p.dlogits_stride, p.vocab, sizeof(T));
    if (!p.dlogits && !options && packs && p.rows <= INT32_MAX) {
        vocab_rows::launch_summed<loss_row<T>>(context, p, stream);
        return cudaSuccess;
    }
    bool done = false;
    const cudaError_t error = options ? vocab_rows::launch_resident<optioned_row<T>>(context, p, packs, stream, &done)
                                      : vocab_rows::launch_resident<plain_row<T>>(context, p, packs, stream, &done);
    if (error == cudaSuccess && !done) vocab_rows::launch_streamed<streamed_row<T>>(context, p, stream);
    return error;
}

} // namespace cross_entropy

extern "C" liger_status cross_entropy_count_cuda(liger_context *context,
                                                 const struct cross_entropy_count_problem *problem,
                                                 liger_stream stream) {
    LIGER_ON_DEVICE(context, "cross_entropy_count");
    launch_next(context, cross_entropy::count_kernel, 1, cross_entropy::ONE_BLOCK, (cudaStream_t)stream, *problem);
    return launched(context, "cross_entropy_count", stream);
}

extern "C" liger_status cross_entropy_rows_cuda(liger_context *context,
                                                const struct cross_entropy_rows_problem *problem, liger_stream stream) {
    if (problem->rows == 0) return LIGER_OK;
    LIGER_ON_DEVICE(context, "cross_entropy_rows");
    cudaError_t error = cudaSuccess;
    LIGER_FOR_FLOAT(problem->dtype, T, error = cross_entropy::launch_rows<T>(context, *problem, (cudaStream_t)stream))
    LIGER_TRY(cuda_status(error, "cross_entropy_rows"));
    return launched(context, "cross_entropy_rows", stream);
}

extern "C" liger_status cross_entropy_reduce_cuda(liger_context *context,
                                                  const struct cross_entropy_reduce_problem *problem,
                                                  liger_stream stream) {
    LIGER_ON_DEVICE(context, "cross_entropy_reduce");
    if (problem->unreduced) {
        if (problem->rows == 0) return LIGER_OK;
        launch_next(context, cross_entropy::round_rows_kernel, grid_size(problem->rows, 256), 256, (cudaStream_t)stream,
                    *problem);
    } else {
        launch_next(context, cross_entropy::reduce_kernel, 1, cross_entropy::ONE_BLOCK, (cudaStream_t)stream, *problem);
    }
    return launched(context, "cross_entropy_reduce", stream);
}
