/* linear_topk_kl_rows.cuh - the walk over a row for cuda/vocab_rows.cuh: one read and one write as long as it fits into the shared
 * memory of a cluster. Its ids hold -inf then, and what was taken of them is known. */
#ifndef LIGER_OPS_LINEAR_TOPK_KL_ROWS_CUH
#define LIGER_OPS_LINEAR_TOPK_KL_ROWS_CUH

#include "liger/cuda/vocab_rows_resident.cuh"
#include "liger/cuda/vocab_rows_streamed.cuh"
#include "liger/ops/linear_topk_kl/linear_topk_kl_problem.h"

namespace linear_topk_kl {

using problem = linear_topk_kl_problem;
using listed = linear_topk_kl_listed;

/* Rounded, as the maximum of all is: never fused into a difference with it. */
__device__ __forceinline__ float z_of(const problem &p, float logit) { return __fmul_rn(logit, p.inverse); }

template <typename T>
__device__ __forceinline__ T *logits_of(const problem &p, int64_t r) {
    return (T *)p.logits + r * p.logits_stride;
}

/* Of a row, once its walk is done. */
struct row_end {
    softmax_state all;
    float rest;

    __device__ __forceinline__ row_end(const listed &row, const softmax_state &outside)
        : all(merge(outside, {row.max, row.sum})), rest(linear_topk_kl_rest_of(&row, outside.sum != 0.0f)) {}

    __device__ __forceinline__ float loss(const listed &row, const softmax_state &outside) const {
        const float log_outside = (outside.max - all.max) + softmax_log_sum(outside);
        return linear_topk_kl_loss(&row, rest, all.max, softmax_log_sum(all), log_outside);
    }
    /* What exp(z - outside.max) is multiplied by. */
    __device__ __forceinline__ float share(const listed &row, const softmax_state &outside) const {
        if (outside.sum == 0.0f) return 0.0f;
        const float s = outside.sum * softmax_rescale(outside.max, softmax_unit_of(all.max)) / all.sum;
        return linear_topk_kl_outside(&row, rest, s) / outside.sum;
    }
};

template <typename T>
struct outside_row : vocab_rows::every_row {
    using type = T;
    using problem = linear_topk_kl::problem;
    using slot = softmax_state;
    using state = vocab_rows::every_row::state;
    enum { INPUTS = 1, VECTORS = 4, LEAST_THREADS = 512, MOST_THREADS = 1024 };
    using row_part = vocab_rows::row_part<T, VECTORS>;
    struct batch {
        float weight, factor; /* of a row's loss and of its gradient */
    };
    struct facts {
        softmax_unit unit;
        float share;
        T *gradient;
    };

    static __device__ __forceinline__ batch batch_of(const problem &p) {
        const float weight = row_weight(&p.counted);
        return {weight, (p.raw_gradient ? 1.0f : weight) * p.inverse};
    }
    static LIGER_HOST_DEVICE int64_t cols(const problem &p) { return p.vocab; }
    static __device__ __forceinline__ const T *input(const problem &p, int, int64_t r) { return logits_of<T>(p, r); }
    static __device__ __forceinline__ slot empty() { return softmax_empty(); }
    static __device__ __forceinline__ int key(const problem &p, int64_t r) {
        return row_counts(&p.counted, r) ? 0 : (int)vocab_rows::SKIPPED;
    }

    /* By one thread of the row. */
    static __device__ __forceinline__ void end_row(const problem &p, const batch &b, int64_t r, const slot &outside) {
        const listed row = p.listed[r];
        const row_end end(row, outside);
        if (p.loss) p.loss[r] = end.loss(row, outside) * b.weight;
        p.listed[r].max_of_all = end.all.max;
        p.listed[r].share = linear_topk_kl_factor(&row, end.rest) / end.all.sum;
    }
    static __device__ __forceinline__ float share_of(const problem &p, const batch &b, int64_t r, const slot &outside) {
        const listed row = p.listed[r];
        return row_end(row, outside).share(row, outside) * b.factor;
    }
    /* Where -inf was left for an id this is 0, or NaN, until `put`. */
    static __device__ __forceinline__ float gradient_of(const problem &p, float logit, const softmax_unit &unit,
                                                        float share) {
        return softmax_term(z_of(p, logit), unit) * share;
    }

    /* Resident. */
    template <typename P>
    static __device__ __forceinline__ void skip(const problem &p, const P &at, int64_t r) {
        if (p.loss && at.first == 0) p.loss[r] = 0.0f;
        if (p.gradient) vocab_rows::write_part<VECTORS>(logits_of<T>(p, r), at, [](int) { return 0.0f; });
    }
    template <typename P>
    static __device__ __forceinline__ slot first_half(const problem &p, const P &at, int64_t, const uint4 *stage,
                                                      state &) {
        row_part x;
        x.load(at, stage);
        const float max = softmax_max(z_of(p, x.max()));
        const softmax_unit unit = softmax_unit_of(max);
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < x.COUNT; k++) sum[k % 4] += softmax_term(z_of(p, x.value(k)), unit);
        return {max, (sum[0] + sum[1]) + (sum[2] + sum[3])};
    }
    template <typename P, typename L>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &b, const P &at, int64_t r,
                                                       const uint4 *stage, const state &, const slot &all, L loaded) {
        row_part x;
        x.load(at, stage);
        loaded();
        if (at.first == 0) end_row(p, b, r, all);
        if (!p.gradient) return;
        const softmax_unit unit = softmax_unit_of(all.max);
        const float share = share_of(p, b, r, all);
        vocab_rows::write_part<VECTORS>(logits_of<T>(p, r), at,
                                        [&](int k) { return gradient_of(p, x.value(k), unit, share); });
    }

    /* Streamed. */
    static __device__ __forceinline__ bool skip(const problem &p, int64_t r, int64_t key) {
        if (key != vocab_rows::SKIPPED) return false;
        if (p.loss && threadIdx.x == 0) p.loss[r] = 0.0f;
        if (p.gradient)
            for (int64_t j = threadIdx.x; j < p.vocab; j += blockDim.x) logits_of<T>(p, r)[j] = from_f32<T>(0.0f);
        return true;
    }
    template <int N>
    static __device__ __forceinline__ void push(const problem &p, const state &, slot &s,
                                                const vocab_rows::packs<T, N, 1> &raw, int64_t) {
        pack<float, N> z;
        unpack(raw.of[0], z.value);
#pragma unroll
        for (int k = 0; k < N; k++) z.value[k] = z_of(p, z.value[k]);
        vocab_rows::push_pack(s, z);
    }
    static __device__ __forceinline__ facts facts_of(const problem &p, const batch &b, int64_t r, const state &,
                                                     const slot &s) {
        return {softmax_unit_of(s.max), share_of(p, b, r, s), logits_of<T>(p, r)};
    }
    static __device__ __forceinline__ bool writes(const problem &p) { return p.gradient; }
    template <int N>
    static __device__ __forceinline__ void write(const problem &p, const facts &f,
                                                 const vocab_rows::packs<T, N, 1> &raw, int64_t i) {
        float x[N];
        unpack(raw.of[0], x);
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = gradient_of(p, x[k], f.unit, f.share);
        pack<T, N> out;
        repack(x, out);
        store_anywhere(f.gradient + i, out);
    }
    static __device__ __forceinline__ void finish(const problem &p, const batch &b, int64_t r, const state &,
                                                  const slot &s, const facts &) {
        end_row(p, b, r, s);
    }
};

} // namespace linear_topk_kl

#endif
