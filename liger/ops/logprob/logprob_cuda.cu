/* logprob_cuda.cu - log-probabilities on CUDA: which kernels the statistics of rows of logits get, and the gradient of a slice
 * of them; and what both need besides. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/launch.cuh"
#include "liger/ops/logprob/logprob_gradient.cuh"
#include "liger/ops/logprob/logprob_rows.cuh"

namespace logprob {

enum { THREADS = 256, WARPS = THREADS / WARP };

/* ---- ids ---------------------------------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(THREADS) no_id_kernel(const __grid_constant__ logprob_ids_problem p) {
    const int64_t j = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (j < p.vocab) p.first[j] = -1;
}

/* Each thread looks at the others' ids: who comes first does not depend on who is faster. */
__global__ void __launch_bounds__(THREADS) link_ids_kernel(const __grid_constant__ logprob_ids_problem p) {
    const int64_t k = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (k >= p.count) return;
    const int64_t id = index_at(p.ids, p.dtype, k);
    int64_t before = 0, next = k + 1;
    while (before < k && index_at(p.ids, p.dtype, before) != id) before++;
    while (next < p.count && index_at(p.ids, p.dtype, next) != id) next++;
    const bool in_range = id >= 0 && id < p.vocab;
    p.next[k] = in_range && next < p.count ? (int32_t)next : -1;
    if (in_range && before == k) p.first[id] = (int32_t)k;
}

/* ---- rows that were left out ---------------------------------------------------------------------------------------- */

/* A warp for each row. */
__global__ void __launch_bounds__(THREADS) ignored_kernel(const __grid_constant__ logprob_ignored_problem p) {
    const int64_t r = blockIdx.x * (int64_t)WARPS + threadIdx.x / WARP;
    const bool spoiled = p.count && *p.count > p.most;
    if (r >= p.rows || (!spoiled && p.place_of[r] >= 0)) return;
    fill_row(p.results, p.selected_count, r, spoiled ? NAN : 0.0f, threadIdx.x % WARP, WARP);
}

/* ---- weights ------------------------------------------------------------------------------------------------------ */

/* By a whole warp; its lanes share out the selected ids. */
__device__ __forceinline__ logits_gradient_row weigh(const logprob_weights_problem &p, int64_t r, int64_t y) {
    const logprob_upstreams &up = p.upstream;
    float by_selected = 0.0f;
    if (up.selected)
        for (int64_t k = threadIdx.x % WARP; k < p.selected_count; k += WARP)
            by_selected += up.selected[r * p.selected_count + k];
    return logprob_weigh(&p, r, y, logprob_upstream(up.lse, r) - warp_sum(by_selected));
}

__global__ void __launch_bounds__(THREADS) weights_kernel(const __grid_constant__ logprob_weights_problem p) {
    const int64_t i = blockIdx.x * (int64_t)WARPS + threadIdx.x / WARP;
    if (i >= p.rows) return;
    const int64_t r = p.row_of ? p.row_of[i] : i, y = r >= 0 ? index_at(p.target, p.target_dtype, r) : p.ignore_index;
    logits_gradient_row row = {};
    row.target = -1;
    if (y != p.ignore_index) {
        const bool spoiled = y < 0 || y >= p.vocab || (p.count && *p.count > p.most);
        if (!spoiled) row = weigh(p, r, y);
        else row.by_p = NAN, row.target = 0;
    }
    if (threadIdx.x % WARP == 0) p.weights[i] = row;
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

template <typename F>
void launch_formula(const liger_context *context, rows_problem p, cudaStream_t stream) {
    using T = typename F::type;
    const bool packs = matrix_is_packable(p.logits, p.logits_stride, p.vocab, sizeof(T));
    for (int64_t left = p.rows; left > 0; left -= p.rows) { /* a grid has at most INT32_MAX blocks */
        p.rows = left < INT32_MAX ? left : INT32_MAX;
        if (packs) vocab_rows::launch_summed<F, true>(context, p, stream);
        else vocab_rows::launch_summed<F, false>(context, p, stream);
        p.logits = (const T *)p.logits + p.rows * p.logits_stride;
        p.first += p.rows;
    }
}

template <typename T>
void launch_rows(const liger_context *context, const rows_problem &p, cudaStream_t stream) {
    const logprob_results &to = p.results;
    if (p.to_z.capped) launch_formula<full_row<T, true>>(context, p, stream);
    else if (to.entropy || to.log_sum_sq_probs || to.mean_logits || to.is_top1 || p.to_z.inner == 0.0f)
        launch_formula<full_row<T, false>>(context, p, stream);
    else launch_formula<plain_row<T>>(context, p, stream);
}

/* ---- gradient ----------------------------------------------------------------------------------------------------- */

template <typename T>
void launch_gradient_of(const gradient_problem &p, cudaStream_t stream) {
    const bool capped = p.to_z.capped, by_column = p.selected || p.class_weight;
    if (by_column && capped) launch_gradient<T, true, true>(p, stream);
    else if (by_column) launch_gradient<T, false, true>(p, stream);
    else if (capped) launch_gradient<T, true, false>(p, stream);
    else launch_gradient<T, false, false>(p, stream);
}

} // namespace logprob

extern "C" liger_status logprob_ids_cuda(liger_context *context, const struct logprob_ids_problem *problem,
                                         liger_stream stream) {
    const logprob_ids_problem &p = *problem;
    const cudaStream_t on = (cudaStream_t)stream;
    LIGER_ON_DEVICE(context, "logprob_ids");
    if (p.first == NULL) return LIGER_OK;
    logprob::no_id_kernel<<<grid_size(p.vocab, logprob::THREADS), logprob::THREADS, 0, on>>>(p);
    logprob::link_ids_kernel<<<grid_size(p.count, logprob::THREADS), logprob::THREADS, 0, on>>>(p);
    return launched(context, "logprob_ids", stream);
}

extern "C" liger_status logprob_rows_cuda(liger_context *context, const struct logprob_rows_problem *problem,
                                          liger_stream stream) {
    logprob::rows_problem p;
    (logprob_rows_problem &)p = *problem;
    p.to_z = z_map_of(&p.map);
    p.negative = p.to_z.inner < 0.0f;
    p.to_z.inner = fabsf(p.to_z.inner);
    LIGER_ON_DEVICE(context, "logprob_rows");
    LIGER_FOR_FLOAT(p.dtype, T, logprob::launch_rows<T>(context, p, (cudaStream_t)stream))
    return launched(context, "logprob_rows", stream);
}

extern "C" liger_status logprob_ignored_cuda(liger_context *context, const struct logprob_ignored_problem *problem,
                                             liger_stream stream) {
    if (problem->rows == 0) return LIGER_OK;
    LIGER_ON_DEVICE(context, "logprob_ignored");
    const unsigned blocks = grid_size(problem->rows, logprob::WARPS);
    logprob::ignored_kernel<<<blocks, logprob::THREADS, 0, (cudaStream_t)stream>>>(*problem);
    return launched(context, "logprob_ignored", stream);
}

extern "C" liger_status logprob_weights_cuda(liger_context *context, const struct logprob_weights_problem *problem,
                                             liger_stream stream) {
    if (problem->rows == 0) return LIGER_OK;
    LIGER_ON_DEVICE(context, "logprob_weights");
    const unsigned blocks = grid_size(problem->rows, logprob::WARPS);
    logprob::weights_kernel<<<blocks, logprob::THREADS, 0, (cudaStream_t)stream>>>(*problem);
    return launched(context, "logprob_weights", stream);
}

extern "C" liger_status logits_gradient_cuda(liger_context *context, const struct logits_gradient_problem *problem,
                                             liger_stream stream) {
    if (problem->rows == 0 || problem->cols == 0) return LIGER_OK;
    logprob::gradient_problem p;
    (logits_gradient_problem &)p = *problem;
    p.to_z = z_map_of(&p.map);
    LIGER_ON_DEVICE(context, "logits_gradient");
    LIGER_FOR_FLOAT(p.dtype, T, logprob::launch_gradient_of<T>(p, (cudaStream_t)stream))
    return launched(context, "logits_gradient", stream);
}
