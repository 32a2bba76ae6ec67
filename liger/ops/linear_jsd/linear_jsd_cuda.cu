/* linear_jsd_cuda.cu - rows of a Jensen-Shannon divergence on CUDA: formulas for the kernels of cuda/vocab_rows.cuh.
 *
 * A row pair is f32 and read once, as long as it fits into the shared memory of a cluster: the sums of both softmaxes in one
 * exchange, then in a second one those of the loss and of its derivative by log Q, which every element's gradient needs. */
#include "liger/core/kernel_table.h"
#include "liger/cuda/vocab_rows_resident.cuh"
#include "liger/cuda/vocab_rows_streamed.cuh"
#include "liger/ops/linear_jsd/linear_jsd_problem.h"

namespace linear_jsd {

using problem = linear_jsd_problem;

/* ---- an element ------------------------------------------------------------------------------------------------------ */

/* d: the derivative of the term by log Q. */
struct element {
    float term, d, q;
};

__device__ __forceinline__ float exp_approx(float x) { return exp2_approx(x * LOG2E); }

/* From log Q and log P. A term whose factor is 0 is 0. log M is formed relative to the larger of the two. */
__device__ __forceinline__ element element_of(float beta, float log_q, float log_p) {
    if (beta == 0.0f) {
        const float p = exp_approx(log_p);
        return {p == 0.0f ? 0.0f : p * (log_p - log_q), -p, exp_approx(log_q)};
    }
    if (beta == 1.0f) {
        const float q = exp_approx(log_q), term = q == 0.0f ? 0.0f : q * (log_q - log_p);
        return {term, term + q, q};
    }
    const float larger = fmaxf(log_q, log_p), by = larger == -INFINITY ? 0.0f : log_p - log_q, rest = 1.0f - beta;
    const float most = exp_approx(larger), ratio = exp_approx(-fabsf(by)), least = most * ratio;
    const bool of_teacher = by > 0.0f;
    const float p = of_teacher ? most : least, q = of_teacher ? least : most;
    const float log_mixed = logf(of_teacher ? fmaf(rest, ratio, beta) : fmaf(beta, ratio, rest));
    const float d = q == 0.0f ? 0.0f : rest * q * ((of_teacher ? -by : 0.0f) - log_mixed);
    return {(p == 0.0f ? 0.0f : beta * p * ((of_teacher ? 0.0f : by) - log_mixed)) + d, d, q};
}

/* ---- what rows exchange ---------------------------------------------------------------------------------------------- */

struct softmaxes {
    softmax_state student, teacher;
};
__device__ __forceinline__ softmaxes merge(const softmaxes &a, const softmaxes &b) {
    return {merge(a.student, b.student), merge(a.teacher, b.teacher)};
}
__device__ __forceinline__ softmaxes warp_merge(const softmaxes &a) {
    return {warp_merge(a.student), warp_merge(a.teacher)};
}

struct totals {
    float loss, d;

    __device__ __forceinline__ void add(const element &e) { loss += e.term, d += e.d; }
};
__device__ __forceinline__ totals merge(totals a, totals b) { return {a.loss + b.loss, a.d + b.d}; }
__device__ __forceinline__ totals warp_merge(totals a) { return {warp_sum(a.loss), warp_sum(a.d)}; }

/* log softmax of z is (z - max) - log_sum. */
struct log_softmax {
    float inverse, max, log_sum;

    __device__ __forceinline__ log_softmax(float inverse, const softmax_state &s) : inverse(inverse), max(s.max) {
        const softmax_unit unit = softmax_unit_of(s.max); /* its own exponent is not quite 0 */
        log_sum = logf(s.sum) - softmax_exponent(s.max, unit) * unit.ln;
    }
    /* max is of rounded products: this one is rounded as well, not fused into the difference. */
    __device__ __forceinline__ float operator()(float logit) const {
        return (__fmul_rn(logit, inverse) - max) - log_sum;
    }
};

/* ---- the row --------------------------------------------------------------------------------------------------------- */

/* T: of the gradient. */
template <typename T>
struct divergence_row : vocab_rows::every_row {
    using type = float;
    using problem = linear_jsd::problem;
    using slot = softmaxes;
    using second_slot = totals;
    /* A pair of f32 rows is large: one at a time is in shared memory, and the next is on its way as soon as this one has been
     * taken apart. */
    static constexpr int RING = 1, ROOM = 1;
    enum { INPUTS = 2, VECTORS = 4, LEAST_THREADS = 256, MOST_THREADS = 1024, N = pack_size<float> };

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
    template <int COUNT>
    static __device__ __forceinline__ void store(T *to, const float (&values)[COUNT]) {
        pack<T, COUNT> out;
        repack(values, out);
        vocab_rows::store_anywhere(to, out);
    }

    /* Resident. */
    static __device__ __forceinline__ int key(const problem &p, int64_t r) {
        return row_counts(&p.counted, r) ? 0 : (int)vocab_rows::SKIPPED;
    }
    template <typename P>
    static __device__ __forceinline__ void skip(const problem &p, const P &at, int64_t r) {
        if (p.loss && at.first == 0) p.loss[r] = 0.0f;
        const float zeros[N] = {};
#pragma unroll
        for (int j = 0; j < VECTORS; j++)
            if (p.dlogits && at.has(j)) store(gradient(p, r) + (at.first + j * at.step) * (int64_t)N, zeros);
    }
    /* Four logits of a stage; behind the end of the row z is -inf, whatever the sign of the temperature. */
    template <typename P>
    static __device__ __forceinline__ float4 load(const problem &p, const P &at, const uint4 *stage, int j) {
        const float beyond = p.inverse < 0.0f ? INFINITY : -INFINITY;
        return at.has(j) ? ((const float4 *)stage)[j * at.step] : make_float4(beyond, beyond, beyond, beyond);
    }
    template <typename P>
    static __device__ __forceinline__ softmax_state sum_up(const problem &p, const P &at, const uint4 *stage) {
        float z[VECTORS * N], max = -FLT_MAX, sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < VECTORS; j++) *(float4 *)&z[j * N] = load(p, at, stage, j);
#pragma unroll
        for (int k = 0; k < VECTORS * N; k++) max = fmaxf(max, z[k] *= p.inverse);
        const softmax_unit unit = softmax_unit_of(max);
#pragma unroll
        for (int k = 0; k < VECTORS * N; k++) sum[k % 2] += softmax_term(z[k], unit);
        return {max, sum[0] + sum[1]};
    }
    template <typename P>
    static __device__ __forceinline__ slot first_half(const problem &p, const P &at, int64_t, const uint4 *stage,
                                                      state &) {
        const softmax_state student = sum_up(p, at, stage);
        return {student, sum_up(p, at, vocab_rows::input_stage<divergence_row>(at, stage, 1))};
    }
    /* Behind the one stage that there is. */
    template <typename P>
    static __device__ __forceinline__ float4 *room(const P &at, const uint4 *stage) {
        return (float4 *)(uintptr_t)vocab_rows::input_stage<divergence_row>(at, stage, INPUTS);
    }
    template <typename P, typename L, typename X>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &, const P &at, int64_t r,
                                                       const uint4 *stage, const state &, const slot &of_lane, L loaded,
                                                       X &again) {
        const softmaxes all = warp_merge(of_lane);
        const log_softmax log_q(p.inverse, all.student), log_p(p.inverse, all.teacher);
        float d[VECTORS * N], q[VECTORS * N];
        totals mine = {0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            float x[N], y[N];
            *(float4 *)x = load(p, at, stage, j);
            *(float4 *)y = load(p, at, vocab_rows::input_stage<divergence_row>(at, stage, 1), j);
#pragma unroll
            for (int k = 0; k < N; k++) {
                const element e = element_of(p.beta, log_q(x[k]), log_p(y[k]));
                mine.add(e);
                d[j * N + k] = e.d, q[j * N + k] = e.q;
            }
        }
        *room(at, stage) = *(const float4 *)&q[(VECTORS - 1) * N]; /* 64 registers do not hold all */
        loaded();
        const totals sums = again.all(mine, {0.0f, 0.0f});
        if (p.loss && at.first == 0) p.loss[r] = sums.loss * row_weight(&p.counted);
        if (!p.dlogits) return;
        const float by = factor(p);
        T *const to = gradient(p, r) + at.first * (int64_t)N;
        *(float4 *)&q[(VECTORS - 1) * N] = *room(at, stage);
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            float values[N];
#pragma unroll
            for (int k = 0; k < N; k++) values[k] = fmaf(-q[j * N + k], sums.d, d[j * N + k]) * by;
            if (at.has(j)) store(to + j * at.step * N, values);
        }
    }

    /* Streamed: a walk for each step. */
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
        for (int k = 0; k < M; k++) most = fmaxf(most, raw.value[k] * p.inverse);
        const softmax_unit unit = softmax_unit_of(most);
        s = {most, s.sum * softmax_rescale(s.max, unit)};
#pragma unroll
        for (int k = 0; k < M; k++) s.sum += softmax_term(raw.value[k] * p.inverse, unit);
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
        const log_softmax log_q(p.inverse, all.student), log_p(p.inverse, all.teacher);
        totals mine = {0.0f, 0.0f};
        vocab_rows::walk<divergence_row>(p, r, [&](const auto &raw, int64_t) {
            constexpr int M = sizeof(raw.of[0]) / sizeof(float);
#pragma unroll
            for (int k = 0; k < M; k++)
                mine.add(element_of(p.beta, log_q(raw.of[0].value[k]), log_p(raw.of[1].value[k])));
        });
        const totals sums = again.all(mine, {0.0f, 0.0f});
        if (p.loss && threadIdx.x == 0) p.loss[r] = sums.loss * row_weight(&p.counted);
        if (!p.dlogits) return;
        const float by = factor(p);
        vocab_rows::walk<divergence_row>(p, r, [&](const auto &raw, int64_t i) {
            constexpr int M = sizeof(raw.of[0]) / sizeof(float);
            float values[M];
#pragma unroll
            for (int k = 0; k < M; k++) {
                const element e = element_of(p.beta, log_q(raw.of[0].value[k]), log_p(raw.of[1].value[k]));
                values[k] = fmaf(-e.q, sums.d, e.d) * by;
            }
            store(gradient(p, r) + i, values);
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
    const cudaError_t error = vocab_rows::launch_resident<divergence_row<T>>(context, p, packable<T>(p), stream, &done);
    if (error == cudaSuccess && !done) vocab_rows::launch_streamed<divergence_row<T>>(p, stream);
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
