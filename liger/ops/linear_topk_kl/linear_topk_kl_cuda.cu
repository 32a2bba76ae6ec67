/* linear_topk_kl_cuda.cu - rows of a divergence from listed ids on CUDA: before and after the walk over a row a kernel looks at its
 * ids alone, a block for each list. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/launch.cuh"
#include "liger/ops/linear_topk_kl/linear_topk_kl_rows.cuh"

namespace linear_topk_kl {

using mass = linear_topk_kl_mass;

enum { MOST_THREADS = 256 };
static int list_threads(int64_t k) { return k < MOST_THREADS ? round_up_to_warp(k) : (int)MOST_THREADS; }

__device__ __forceinline__ int64_t id_of(const problem &p, int64_t r, int64_t i) {
    return index_at(p.ids, p.id_dtype, r * p.ids_stride + i);
}
__device__ __forceinline__ float log_q_of(const problem &p, int64_t r, int64_t i) {
    return load_as(p.logprobs, p.logprob_dtype, r * p.logprobs_stride + i);
}
__device__ __forceinline__ bool is_of_vocabulary(const problem &p, int64_t id) { return id >= 0 && id < p.vocab; }

/* ---- take ------------------------------------------------------------------------------------------------------------ */

/* What a part of a list adds up to. */
struct part {
    softmax_state z;
    mass q;
    float cross, all_q; /* Σ q·(log q - (z - z.max)), Σ q */
};
/* `cross` relative to another maximum. */
__device__ __forceinline__ float cross_from(const part &a, float max) {
    return a.all_q == 0.0f ? a.cross : a.cross + (max - a.z.max) * a.all_q;
}
__device__ __forceinline__ part warp_merge(const part &a) {
    const softmax_state z = warp_merge(a.z);
    const mass q = {warp_sum(a.q.sure), warp_sum(a.q.above), warp_sum(a.q.below), warp_sum(a.q.entropy)};
    return {z, q, warp_sum(cross_from(a, z.max)), warp_sum(a.all_q)};
}

__device__ __forceinline__ void add(part &to, float z, float log_q, const softmax_unit &unit) {
    const float q = expf(log_q);
    to.z.sum += softmax_term(z, unit);
    if (log_q > LINEAR_TOPK_KL_SURE) to.q.sure += 1.0f, to.q.above += expm1f(log_q);
    else to.q.below += q;
    if (q < FLT_MIN) return; /* 0, whatever it is multiplied by */
    to.q.entropy += q * fmaxf(-log_q, 0.0f);
    to.cross += q * (log_q - (z - to.z.max));
    to.all_q += q;
}

/* Does every id of the list stand once? Each place writes its number where the id's logit was, and looks whether it is still there:
 * of two, one finds the other's. Which one makes no difference. In the end -inf is there. By all threads, once all have read. */
template <typename T>
__device__ __forceinline__ bool leave_minus_infinity(const problem &p, int64_t r, T *logits) {
    using word = std::conditional_t<sizeof(T) == 4, unsigned, unsigned short>;
    volatile word *const at = (volatile word *)logits;
    const auto each = [&](auto visit) {
        for (int64_t i = threadIdx.x; i < p.k; i += blockDim.x) {
            const int64_t id = id_of(p, r, i);
            if (is_of_vocabulary(p, id)) visit(id, i);
        }
        __syncthreads();
    };
    bool once = true;
    /* A part of the number at a time. */
    for (int shift = 0; shift == 0 || (p.k - 1) >> shift != 0; shift += 8 * (int)sizeof(T)) {
        each([&](int64_t id, int64_t i) { at[id] = (word)(i >> shift); });
        each([&](int64_t id, int64_t i) { once &= at[id] == (word)(i >> shift); });
    }
    each([&](int64_t id, int64_t) { at[id] = (word)vocab_rows::MINUS_INFINITY<T>; });
    return once;
}

/* Each thread has places of its own in `taken`. */
template <typename T>
__device__ __forceinline__ void take_row(const problem &p, int64_t r, vocab_rows::block_exchange<part> &exchange) {
    T *const logits = logits_of<T>(p, r), *const taken = (T *)p.taken + r * p.k;
    part mine = {softmax_empty(), {0.0f, 0.0f, 0.0f, 0.0f}, 0.0f, 0.0f};
    const part empty = mine;
    bool broken = false;
    for (int64_t i = threadIdx.x; i < p.k; i += blockDim.x) {
        const int64_t id = id_of(p, r, i);
        broken |= id != -1 && !is_of_vocabulary(p, id);
        if (!is_of_vocabulary(p, id)) continue;
        const T logit = logits[id];
        taken[i] = logit;
        mine.z.max = fmaxf(mine.z.max, z_of(p, to_f32(logit)));
    }
    __syncthreads();
    broken |= !leave_minus_infinity(p, r, logits);
    const softmax_unit unit = softmax_unit_of(mine.z.max);
    for (int64_t i = threadIdx.x; i < p.k; i += blockDim.x) {
        if (!is_of_vocabulary(p, id_of(p, r, i))) continue;
        add(mine, z_of(p, to_f32(taken[i])), log_q_of(p, r, i), unit);
    }
    const part all = exchange.all(mine, empty);
    broken = __syncthreads_or(broken);
    if (threadIdx.x != 0) return;
    listed found = {all.z.max, all.z.sum, 0.0f, 0.0f, all.cross, 0.0f, 0.0f, 0.0f};
    linear_topk_kl_rest(&found, all.q, p.logprob_dtype, broken);
    p.listed[r] = found;
}

template <typename T>
__global__ void __launch_bounds__(MOST_THREADS) take_kernel(const __grid_constant__ problem p) {
    __shared__ part parts[2 * MOST_THREADS / WARP];
    vocab_rows::block_exchange<part> exchange = {parts, (int)blockDim.x / WARP, 0};
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x)
        if (row_counts(&p.counted, r)) take_row<T>(p, r, exchange);
}

/* ---- put ------------------------------------------------------------------------------------------------------------- */

template <typename T>
__device__ __forceinline__ void put_row(const problem &p, int64_t r, float factor) {
    const listed row = p.listed[r];
    const softmax_unit unit = softmax_unit_of(row.max_of_all);
    T *const gradient = logits_of<T>(p, r);
    const T *const taken = (const T *)p.taken + r * p.k;
    for (int64_t i = threadIdx.x; i < p.k; i += blockDim.x) {
        const int64_t id = id_of(p, r, i);
        if (!is_of_vocabulary(p, id)) continue;
        const float mine = __fmul_rn(softmax_term(z_of(p, to_f32(taken[i])), unit), row.share);
        gradient[id] = from_f32<T>((mine - expf(log_q_of(p, r, i))) * factor);
    }
}

template <typename T>
__global__ void __launch_bounds__(MOST_THREADS) put_kernel(const __grid_constant__ problem p) {
    const float factor = (p.raw_gradient ? 1.0f : row_weight(&p.counted)) * p.inverse;
    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x)
        if (row_counts(&p.counted, r)) put_row<T>(p, r, factor);
}

/* ---- the launches ------------------------------------------------------------------------------------------------------ */

template <typename T>
static cudaError_t launch(const liger_context *context, const problem &p, cudaStream_t stream) {
    const unsigned blocks = grid_size(p.rows, 1);
    const int threads = list_threads(p.k);
    bool done = false;
    take_kernel<T><<<blocks, threads, 0, stream>>>(p);
    const cudaError_t error = vocab_rows::launch_resident<outside_row<T>>(
        context, p, matrix_is_packable(p.logits, p.logits_stride, p.vocab, sizeof(T)), stream, &done);
    if (error != cudaSuccess) return error;
    if (!done) vocab_rows::launch_streamed<outside_row<T>>(context, p, stream);
    if (p.gradient) put_kernel<T><<<blocks, threads, 0, stream>>>(p);
    return cudaSuccess;
}

} // namespace linear_topk_kl

extern "C" liger_status linear_topk_kl_cuda(liger_context *context, const struct linear_topk_kl_problem *problem,
                                            liger_stream stream) {
    LIGER_ON_DEVICE(context, "linear_topk_kl");
    cudaError_t error = cudaSuccess;
    LIGER_FOR_FLOAT(problem->dtype, T, error = linear_topk_kl::launch<T>(context, *problem, (cudaStream_t)stream))
    LIGER_TRY(cuda_status(error, "linear_topk_kl"));
    return launched(context, "linear_topk_kl", stream);
}
