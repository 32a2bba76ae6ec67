/* linear_jsd_cuda.cu - rows of a Jensen-Shannon divergence on CUDA: formulas for the kernels of cuda/vocab_rows.cuh.
 *
 * A row pair is f32 and read once, as long as it fits into the shared memory of a cluster: the sums of both softmaxes in one
 * exchange, then in a second one those of the loss and of its derivative by log Q, which every element's gradient needs. Rows of a
 * skew mixture (core/mixture.h) are walked. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/jensen_shannon.cuh"
#include "liger/cuda/vocab_rows_resident.cuh"
#include "liger/cuda/vocab_rows_streamed.cuh"
#include "liger/ops/linear_jsd/linear_jsd_problem.h"

namespace linear_jsd {

using problem = linear_jsd_problem;
using jensen_shannon::element;

/* ---- what rows exchange ---------------------------------------------------------------------------------------------- */

struct softmaxes {
    softmax_state student, teacher;
};
__device__ __forceinline__ softmaxes warp_merge(const softmaxes &a) {
    return {warp_merge(a.student), warp_merge(a.teacher)};
}

struct totals {
    float loss, d;

    __device__ __forceinline__ void add(const element &e) { loss += e.value, d += e.slope; }
};
__device__ __forceinline__ totals warp_merge(totals a) { return {warp_sum(a.loss), warp_sum(a.d)}; }

/* log softmax of z is (z - max) - log_sum; in BITS it is to base 2. */
template <bool BITS>
struct log_softmax {
    float max, log_sum;

    __device__ __forceinline__ explicit log_softmax(softmax_state s)
        : max(s.max), log_sum(softmax_log_sum(s) * (BITS ? LOG2E : 1.0f)) {}
    __device__ __forceinline__ float operator()(float z) const {
        return BITS ? fmaf(z - max, LOG2E, -log_sum) : (z - max) - log_sum;
    }
};

/* z of a logit. max is of rounded products: this one is rounded as well, and not fused into a difference. */
__device__ __forceinline__ float scaled(float logit, float inverse) { return __fmul_rn(logit, inverse); }

template <int N>
struct elements {
    static constexpr int count = N;
    element of[N];
};

/* ---- the row --------------------------------------------------------------------------------------------------------- */

/* T: of the gradient. */
template <typename T>
struct divergence_row : vocab_rows::every_row {
    using type = float;
    using problem = linear_jsd::problem;
    using slot = softmaxes;
    using second_slot = totals;
    /* A pair of f32 rows is large: one at a time is in shared memory, and in registers from the first half on. Few threads
     * with many values: what warps tell each other takes as long as what they compute. */
    static constexpr int RING = 1;
    enum { INPUTS = 2, VECTORS = 8, LEAST_THREADS = 256, MOST_THREADS = 512, N = pack_size<float> };
    enum { COUNT = VECTORS * N };

    static LIGER_HOST_DEVICE int64_t cols(const problem &p) { return p.vocab; }
    static __device__ __forceinline__ const float *input(const problem &p, int k, int64_t r) {
        return k == 0 ? p.student + r * p.student_stride : p.teacher + r * p.teacher_stride;
    }
    static __device__ __forceinline__ T *gradient(const problem &p, int64_t r) {
        return (T *)p.dlogits + r * p.dlogits_stride;
    }
    static __device__ __forceinline__ slot empty() { return {softmax_empty(), softmax_empty()}; }
    static __device__ __forceinline__ float factor(const problem &p) {
        return (p.raw_gradient ? 1.0f : row_weight(&p.counted)) * p.inverse;
    }
    /* ALIGNED: to what is stored; a resident row is. */
    template <bool ALIGNED, int COUNT>
    static __device__ __forceinline__ void store(T *to, const float (&values)[COUNT]) {
        pack<T, COUNT> out;
        repack(values, out);
        if constexpr (ALIGNED) store_whole_pack(to, out);
        else store_anywhere(to, out);
    }

    /* Resident. The scaled logits of both models, and then what the gradient needs, slope and Q, in their places. */
    struct state {
        int key;
        float x[COUNT], y[COUNT];
    };
    static __device__ __forceinline__ state state_of(const problem &, int, int key) {
        state row; /* the rest is written before it is read */
        row.key = key;
        return row;
    }
    static __device__ __forceinline__ int key(const problem &p, int64_t r) {
        return row_counts(&p.counted, r) ? 0 : (int)vocab_rows::SKIPPED;
    }
    template <typename P>
    static __device__ __forceinline__ void skip(const problem &p, const P &at, int64_t r) {
        if (p.loss && at.first == 0) p.loss[r] = 0.0f;
        if (!p.dlogits) return;
        const float zeros[N] = {};
        T *const to = gradient(p, r) + at.first * (int64_t)N;
#pragma unroll 1
        for (int j = 0; j < VECTORS; j++)
            if (at.has(j)) store<true>(to + j * at.step * N, zeros);
    }
    /* Behind the end of the row z is -inf, whatever the sign of the temperature. */
    template <typename, typename P>
    static __device__ __forceinline__ uint32_t beyond(const P &p, int) {
        return vocab_rows::minus_infinity_by<float>(p.inverse);
    }
    template <typename P>
    static __device__ __forceinline__ void load(const problem &p, const P &at, const uint4 *stage, float (&z)[COUNT]) {
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            *(float4 *)&z[j * N] = ((const float4 *)stage)[j * at.step];
#pragma unroll
            for (int k = j * N; k < (j + 1) * N; k++) z[k] = scaled(z[k], p.inverse);
        }
    }
    static __device__ __forceinline__ softmax_state sum_up(const float (&z)[COUNT]) {
        float most[4] = {-FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX}, sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < COUNT; k++) most[k % 4] = fmaxf(most[k % 4], z[k]);
        const float max = fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]));
        const softmax_unit unit = softmax_unit_of(max);
#pragma unroll
        for (int k = 0; k < COUNT; k++) sum[k % 4] += softmax_term(z[k], unit);
        return {max, (sum[0] + sum[1]) + (sum[2] + sum[3])};
    }
    template <typename P, typename L>
    static __device__ __forceinline__ slot first_half(const problem &p, const P &at, int64_t, const uint4 *stage,
                                                      state &row, L loaded) {
        load(p, at, stage, row.x);
        load(p, at, vocab_rows::input_stage<divergence_row>(at, stage, 1), row.y);
        loaded();
        return {sum_up(row.x), sum_up(row.y)};
    }
    template <typename P, typename L, typename X>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &, const P &at, int64_t r,
                                                       const uint4 *, state &row, const slot &of_lane, L, X &again) {
        const softmaxes all = warp_merge(of_lane);
        constexpr bool BITS = sizeof(T) < sizeof(float);
        constexpr float OF_UNIT = BITS ? LN2 : 1.0f; /* of what values and slopes are in */
        const log_softmax<BITS> log_q(all.student), log_p(all.teacher);
        totals mine = {0.0f, 0.0f};
        jensen_shannon::by_mode<false, !BITS, BITS>(p.mixture, [&](auto element_of) {
#pragma unroll
            for (int k = 0; k < COUNT; k++) {
                const element e = element_of(log_q(row.x[k]), log_p(row.y[k]));
                mine.add(e);
                row.x[k] = e.slope, row.y[k] = e.q;
            }
        });
        const totals sums = again.all(mine, {0.0f, 0.0f});
        if (p.loss && at.first == 0) p.loss[r] = sums.loss * OF_UNIT * row_weight(&p.counted);
        if (!p.dlogits) return;
        const float by = factor(p) * OF_UNIT;
        T *const to = gradient(p, r) + at.first * (int64_t)N;
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            float values[N];
#pragma unroll
            for (int k = 0; k < N; k++) values[k] = fmaf(-row.y[j * N + k], sums.d, row.x[j * N + k]) * by;
            if (at.has(j)) store<true>(to + j * at.step * N, values);
        }
    }

    /* Streamed: a walk for each step. */
    static __device__ __forceinline__ state state_of(const problem &, int64_t, int64_t, const slot &) {
        return state();
    }
    static __device__ __forceinline__ bool skip(const problem &p, int64_t r, int64_t key) {
        if (key != vocab_rows::SKIPPED) return false;
        if (p.loss && threadIdx.x == 0) p.loss[r] = 0.0f;
        if (p.dlogits)
            for (int64_t j = threadIdx.x; j < p.vocab; j += blockDim.x) gradient(p, r)[j] = from_f32<T>(0.0f);
        return true;
    }
    template <int M>
    static __device__ __forceinline__ void push_one(const problem &p, softmax_state &s, const pack<float, M> &raw) {
        float most = s.max;
#pragma unroll
        for (int k = 0; k < M; k++) most = fmaxf(most, scaled(raw.value[k], p.inverse));
        const softmax_unit unit = softmax_unit_of(most);
        s = {most, s.sum * softmax_rescale(s.max, unit)};
#pragma unroll
        for (int k = 0; k < M; k++) s.sum += softmax_term(scaled(raw.value[k], p.inverse), unit);
    }
    template <int M>
    static __device__ __forceinline__ void push(const problem &p, const state &, slot &s,
                                                const vocab_rows::packs<float, M, 2> &raw, int64_t) {
        push_one(p, s.student, raw.of[0]);
        push_one(p, s.teacher, raw.of[1]);
    }
    template <typename X>
    static __device__ __forceinline__ void settle(const problem &p, int64_t r, const slot &of_lane, X &again) {
        const softmaxes all = warp_merge(of_lane);
        const log_softmax<false> log_q(all.student), log_p(all.teacher);
        /* Calls visit(elements, place of the first in the row) for what belongs to this thread. */
        const auto each = [&](auto visit) {
            const auto walk = [&](auto element_of) {
                vocab_rows::walk<divergence_row>(p, r, [&](const auto &raw, int64_t i) {
                    constexpr int M = sizeof(raw.of[0]) / sizeof(float);
                    elements<M> e;
#pragma unroll
                    for (int k = 0; k < M; k++)
                        e.of[k] = element_of(log_q(scaled(raw.of[0].value[k], p.inverse)),
                                             log_p(scaled(raw.of[1].value[k], p.inverse)));
                    visit(e, i);
                });
            };
            if (jensen_shannon::is_skew(p.mixture)) jensen_shannon::by_skew_mode<false>(p.mixture, walk);
            else jensen_shannon::by_mode<false, sizeof(T) == sizeof(float)>(p.mixture, walk);
        };
        totals mine = {0.0f, 0.0f};
        each([&](const auto &e, int64_t) {
#pragma unroll
            for (int k = 0; k < e.count; k++) mine.add(e.of[k]);
        });
        const totals sums = again.all(mine, {0.0f, 0.0f});
        if (p.loss && threadIdx.x == 0) p.loss[r] = sums.loss * row_weight(&p.counted);
        if (!p.dlogits) return;
        const float by = factor(p);
        each([&](const auto &e, int64_t i) {
            float values[e.count];
#pragma unroll
            for (int k = 0; k < e.count; k++) values[k] = fmaf(-e.of[k].q, sums.d, e.of[k].slope) * by;
            store<false>(gradient(p, r) + i, values);
        });
    }
};

/* ---- which kernel ------------------------------------------------------------------------------------------------------ */

template <typename T>
static bool packable(const problem &p) {
    const uintptr_t rows = (uintptr_t)p.student | (uintptr_t)p.teacher |
                           (uintptr_t)((p.student_stride | p.teacher_stride | p.vocab) * (int64_t)sizeof(float));
    const uintptr_t out = (uintptr_t)p.dlogits | (uintptr_t)(p.dlogits_stride * (int64_t)sizeof(T));
    return rows % PACK_BYTES == 0 && (!p.dlogits || out % (pack_size<float> * sizeof(T)) == 0);
}

template <typename T>
static cudaError_t launch(const liger_context *context, const problem &p, cudaStream_t stream) {
    bool done = false;
    /* A resident row leaves no registers for the formulas of a skew mixture. */
    const bool resident = packable<T>(p) && !jensen_shannon::is_skew(p.mixture);
    const cudaError_t error = vocab_rows::launch_resident<divergence_row<T>>(context, p, resident, stream, &done);
    if (error == cudaSuccess && !done) vocab_rows::launch_streamed<divergence_row<T>>(context, p, stream);
    return error;
}

} // namespace linear_jsd

extern "C" liger_status linear_jsd_cuda(liger_context *context, const struct linear_jsd_problem *problem,
                                        liger_stream stream) {
    LIGER_ON_DEVICE(context, "linear_jsd");
    cudaError_t error = cudaSuccess;
    LIGER_FOR_FLOAT(problem->dtype, T, error = linear_jsd::launch<T>(context, *problem, (cudaStream_t)stream))
    LIGER_TRY(cuda_status(error, "linear_jsd"));
    return launched(context, "linear_jsd", stream);
}
