/* cross_entropy_resident.cuh - the formulas of cross entropy for cuda/vocab_rows_resident.cuh: the plain row, and the row
 * with every option. */
#ifndef LIGER_OPS_CROSS_ENTROPY_RESIDENT_CUH
#define LIGER_OPS_CROSS_ENTROPY_RESIDENT_CUH

#include "liger/cuda/vocab_rows_resident.cuh"
#include "liger/ops/cross_entropy/cross_entropy_row.cuh"

namespace cross_entropy {

enum { TARGET_OUT_OF_RANGE = vocab_rows::SKIPPED - 1 };

/* What both rows have in common. */
template <typename T>
struct resident_row : logits_row<T> {
    using base = logits_row<T>;
    enum { INPUTS = 1, VECTORS = 4, N = pack_size<T>, COUNT = VECTORS * N };
    using part = vocab_rows::row_part<T, VECTORS>;

    struct state {
        int key;      /* the target, or what is wrong with it */
        float target; /* its logit; soft-capped in the first half */
        float base;   /* for label smoothing */
    };
    static __device__ __forceinline__ int key(const problem &p, int64_t r) {
        const int64_t y = base::target(p, r);
        if (y == p.ignore_index) return vocab_rows::SKIPPED;
        return y >= 0 && y < p.vocab ? (int)y : TARGET_OUT_OF_RANGE;
    }
    static __device__ __forceinline__ state state_of(const problem &p, int i, int key) {
        return {key, key >= 0 ? to_f32(base::input(p, 0, from_the_end(p.rows, i))[key]) : -FLT_MAX, -FLT_MAX};
    }

    template <typename P, typename G>
    static __device__ __forceinline__ void write(const problem &p, const P &at, int64_t r, G gradient) {
        vocab_rows::write_part<VECTORS>((T *)p.dlogits + r * p.dlogits_stride, at, gradient);
    }
    template <typename P>
    static __device__ __forceinline__ void skip(const problem &p, const P &at, int64_t r) {
        if (at.first == 0) ignore_row(p, r);
        if (p.dlogits) write(p, at, r, [](int) { return 0.0f; });
    }
    template <typename P>
    static __device__ __forceinline__ int own_value(const P &at, int y) {
        return vocab_rows::own_value<N, VECTORS>(at, y);
    }
    /* By the thread that has the target; without a target the row's first. The target's gradient is formed in f32 and
     * stored over the vector's element: a thread's stores to one address keep their order. */
    template <typename P>
    static __device__ __forceinline__ void finish(const problem &p, const batch &b, const P &at, int64_t r, int y,
                                                  int own, const factors &f, const row_sums &sums) {
        if (y < 0 && at.first == 0) spoil_row(p, r, sums.predicted);
        if (own < 0) return;
        const float d = finish_row(p, b, r, y, f, sums);
        if (p.dlogits) ((T *)p.dlogits + r * p.dlogits_stride)[y] = from_f32<T>(d);
    }
};

/* No label smoothing, no soft cap, nobody asks for the prediction. */
template <typename T>
struct plain_row : resident_row<T> {
    using base = resident_row<T>;
    using slot = softmax_state;
    using typename base::part;
    using typename base::state;
    enum { LEAST_THREADS = 128, MOST_THREADS = 1024 };
    static __device__ __forceinline__ slot empty() { return softmax_empty(); }

    template <typename P>
    static __device__ __forceinline__ slot first_half(const problem &p, const P &at, int64_t r, const uint4 *stage,
                                                      state &row) {
        const int own = base::own_value(at, row.key);
        part x;
        x.load(at, stage);
        const float max = softmax_max(fmaxf(x.max(), row.target));
        const softmax_unit unit = softmax_unit_of(max);
        if (own >= 0) x.remove(own);
        return {max, x.sum(unit)};
    }

    template <typename P, typename F>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &b, const P &at, int64_t r,
                                                       const uint4 *stage, const state &row, const slot &all,
                                                       F loaded) {
        const factors f = row.key >= 0 ? factors_of(p, b, r, row.key, row.target, all) : factors{NAN, NAN};
        part x;
        x.load(at, stage);
        loaded();
        const softmax_unit unit = softmax_unit_of(all.max);
        if (p.dlogits) base::write(p, at, r, [&](int k) { return softmax_term(x.value(k), unit) * f.probability; });
        base::finish(p, b, at, r, row.key, base::own_value(at, row.key), f, {row.target, all, 0.0f, 0.0f, -1});
    }
};

/* Σ w (x - base) of one vector. */
template <int N>
__device__ __forceinline__ float smooth_sum(const problem &p, const float *x, int first, float base) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) sum += (p.weight ? p.weight[first + k] : 1.0f) * (x[k] - base);
    return sum;
}

/* Every option. They need more registers. */
template <typename T>
struct optioned_row : resident_row<T> {
    using base = resident_row<T>;
    using slot = summary;
    using typename base::part;
    using typename base::state;
    enum { LEAST_THREADS = 512, MOST_THREADS = 512, N = base::N, COUNT = base::COUNT };
    static __device__ __forceinline__ slot empty() { return empty_summary(); }

    /* Soft-capped logits; -inf where the row has ended. */
    template <typename P>
    static __device__ __forceinline__ void load(const problem &p, const P &at, const uint4 *stage, float (&x)[COUNT]) {
        part row;
        row.load(at, stage);
#pragma unroll
        for (int k = 0; k < COUNT; k++) x[k] = row.value(k);
        if (p.softcap == 0.0f) return;
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            if (at.has(k / N)) x[k] = capped(p, x[k]);
    }

    template <typename P>
    static __device__ __forceinline__ slot first_half(const problem &p, const P &at, int64_t r, const uint4 *stage,
                                                      state &row) {
        const bool smooth = p.label_smoothing > 0.0f;
        const int own = base::own_value(at, row.key);
        if (row.key >= 0) row.target = capped(p, row.target);
        if (smooth) row.base = capped(p, to_f32(base::input(p, 0, r)[0]));
        const float most = fmaxf(row.target, row.base);
        if (!isfinite(row.base)) row.base = 0.0f;
        summary mine = empty_summary();
        float x[COUNT];
        load(p, at, stage, x);
        int best = -1;
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            if (x[k] > mine.best) mine.best = x[k], best = k;
        if (best >= 0) mine.index = (at.first + best / N * at.step) * N + best % N;
        if (smooth) {
#pragma unroll
            for (int j = 0; j < base::VECTORS; j++)
                if (at.has(j)) mine.shape += smooth_sum<N>(p, &x[j * N], (at.first + j * at.step) * N, row.base);
        }
        mine.softmax.max = softmax_max(fmaxf(mine.best, most));
        const softmax_unit unit = softmax_unit_of(mine.softmax.max);
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            const float e = softmax_term(x[k], unit);
            mine.softmax.sum += k == own ? 0.0f : e;
        }
        return mine;
    }

    template <typename P, typename F>
    static __device__ __forceinline__ void second_half(const problem &p, const batch &b, const P &at, int64_t r,
                                                       const uint4 *stage, const state &row, slot all, F loaded) {
        if (all.index == INT64_MAX) all.index = 0; /* nothing above -inf */
        const factors f = row.key >= 0 ? factors_of(p, b, r, row.key, row.target, all.softmax) : factors{NAN, NAN};
        float x[COUNT];
        load(p, at, stage, x);
        loaded();
        if (p.dlogits) {
            const softmax_unit unit = softmax_unit_of(all.softmax.max);
#pragma unroll
            for (int k = 0; k < COUNT; k++) {
                const float slope = p.softcap > 0.0f ? cap_slope(p, x[k]) : 1.0f;
                const int j = (at.first + k / N * at.step) * N + k % N;
                const bool weighted = p.weight && p.label_smoothing > 0.0f && j < p.vocab;
                const float uniform = weighted ? f.uniform * p.weight[j] : f.uniform;
                x[k] = (softmax_term(x[k], unit) * f.probability - uniform) * slope;
            }
            base::write(p, at, r, [&](int k) { return x[k]; });
        }
        base::finish(p, b, at, r, row.key, base::own_value(at, row.key), f,
                     {row.target, all.softmax, all.shape, row.base, all.index});
    }
};

} // namespace cross_entropy

#endif
