/* cross_entropy_streamed.cuh - the formula of cross entropy for cuda/vocab_rows_streamed.cuh, with every option. */
#ifndef LIGER_OPS_CROSS_ENTROPY_STREAMED_CUH
#define LIGER_OPS_CROSS_ENTROPY_STREAMED_CUH

#include "liger/cuda/vocab_rows_streamed.cuh"
#include "liger/ops/cross_entropy/cross_entropy_row.cuh"

namespace cross_entropy {

template <typename T>
struct streamed_row : logits_row<T> {
    using slot = summary;
    enum { INPUTS = 1 };
    static __device__ __forceinline__ slot empty() { return empty_summary(); }

    struct state {
        int64_t y;
        bool in_range;
        float target, base;
    };
    struct facts {
        factors f;
        softmax_unit unit;
        T *gradient;
    };

    static __device__ __forceinline__ T *gradient(const problem &p, int64_t r) {
        return (T *)p.dlogits + r * p.dlogits_stride;
    }
    static __device__ __forceinline__ int64_t key(const problem &p, int64_t r) { return streamed_row::target(p, r); }
    static __device__ __forceinline__ bool skip(const problem &p, int64_t r, int64_t y) {
        if (y != p.ignore_index) return false;
        if (threadIdx.x == 0) ignore_row(p, r);
        if (p.dlogits)
            for (int64_t j = threadIdx.x; j < p.vocab; j += blockDim.x) gradient(p, r)[j] = from_f32<T>(0.0f);
        return true;
    }
    static __device__ __forceinline__ state state_of(const problem &p, int64_t r, int64_t y, slot &s) {
        const T *logits = streamed_row::input(p, 0, r);
        const bool in_range = y >= 0 && y < p.vocab;
        const float target = in_range ? capped(p, to_f32(logits[y])) : -FLT_MAX, base = capped(p, to_f32(logits[0]));
        s.softmax.max = softmax_max(fmaxf(target, base));
        return {y, in_range, target, isfinite(base) ? base : 0.0f};
    }

    template <int N>
    static __device__ __forceinline__ void push(const problem &p, const state &row, slot &s,
                                                const vocab_rows::packs<T, N, 1> &raw, int64_t first) {
        float x[N], most = -FLT_MAX;
#pragma unroll
        for (int k = 0; k < N; k++) x[k] = value_of(raw.of[0], k);
        if (p.softcap > 0.0f) {
#pragma unroll
            for (int k = 0; k < N; k++) x[k] = capped(p, x[k]);
        }
#pragma unroll
        for (int k = 0; k < N; k++) most = fmaxf(most, x[k]);
        if (most >= s.best && (p.accuracy || p.predicted)) {
#pragma unroll
            for (int k = 0; k < N; k++) take_better(s.best, s.index, x[k], first + k);
        }
        const float max = fmaxf(s.softmax.max, softmax_max(most));
        const softmax_unit unit = softmax_unit_of(max);
        s.softmax.sum *= softmax_rescale(s.softmax.max, unit);
        s.softmax.max = max;
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float e = softmax_term(x[k], unit);
            s.softmax.sum += first + k == row.y ? 0.0f : e;
        }
        if (p.label_smoothing > 0.0f) {
#pragma unroll
            for (int k = 0; k < N; k++) s.shape += (p.weight ? p.weight[first + k] : 1.0f) * (x[k] - row.base);
        }
    }

    static __device__ __forceinline__ facts facts_of(const problem &p, const batch &b, int64_t r, const state &row,
                                                     slot &s) {
        if (s.index == INT64_MAX) s.index = 0; /* nothing above -inf */
        const factors f = row.in_range ? factors_of(p, b, r, row.y, row.target, s.softmax) : factors{NAN, NAN};
        return {f, softmax_unit_of(s.softmax.max), gradient(p, r)};
    }

    static __device__ __forceinline__ bool writes(const problem &p) { return p.dlogits; }
    template <int N>
    static __device__ __forceinline__ void write(const problem &p, const facts &found,
                                                 const vocab_rows::packs<T, N, 1> &raw, int64_t first) {
        const bool weighted = p.weight && p.label_smoothing > 0.0f;
        const factors &f = found.f;
        pack<T, N> out;
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float x = capped(p, value_of(raw.of[0], k)),
                        uniform = weighted ? f.uniform * p.weight[first + k] : f.uniform;
            const float d = (softmax_term(x, found.unit) * f.probability - uniform) * cap_slope(p, x);
            out.value[k] = from_f32<T>(d);
        }
        store_anywhere(found.gradient + first, out);
    }

    /* The target's element is replaced. */
    static __device__ __forceinline__ void finish(const problem &p, const batch &b, int64_t r, const state &row,
                                                  const slot &s, const facts &found) {
        if (!row.in_range) {
            spoil_row(p, r, s.index);
            return;
        }
        const float d = finish_row(p, b, r, row.y, found.f, {row.target, s.softmax, s.shape, row.base, s.index});
        if (p.dlogits) found.gradient[row.y] = from_f32<T>(d);
    }
};

} // namespace cross_entropy

#endif
