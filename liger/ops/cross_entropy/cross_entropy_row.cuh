/* cross_entropy_row.cuh - the scalar arithmetic of one row, shared by the formulas of all row kernels: from a row's maximum
 * and sums to its results and the factors of its gradient. */
#ifndef LIGER_OPS_CROSS_ENTROPY_ROW_CUH
#define LIGER_OPS_CROSS_ENTROPY_ROW_CUH

#include "liger/cuda/vocab_rows.cuh"
#include "liger/ops/cross_entropy/cross_entropy_problem.h"

namespace cross_entropy {

using problem = cross_entropy_rows_problem;

__device__ __forceinline__ float capped(const problem &p, float x) {
    return p.softcap > 0.0f ? p.softcap * tanhf(x / p.softcap) : x;
}
/* Derivative of the soft cap where it gave x. */
__device__ __forceinline__ float cap_slope(const problem &p, float x) {
    if (!(p.softcap > 0.0f)) return 1.0f;
    const float ratio = x / p.softcap;
    return 1.0f - ratio * ratio;
}

/* What is the same for all rows: read once per block. */
struct batch {
    float by_weight, by_count;      /* of loss and z-loss */
    float ce, z_over_ce;            /* of the gradient, and twice that of the z-loss relative to it */
    float total, uniform_per_class; /* Σ w, and label_smoothing/vocab */
    bool simple;                    /* no option touches the gradient */
};
__device__ __forceinline__ batch batch_of(const problem &p) {
    const cross_entropy_counts counts = *p.counts;
    batch b;
    b.by_weight = p.mean ? 1.0f / counts.weight_sum : 1.0f;
    b.by_count = p.mean ? 1.0f / counts.valid : 1.0f;
    b.ce = p.raw_gradient ? 1.0f : b.by_weight;
    b.z_over_ce = 2.0f * (p.mean ? counts.weight_sum / counts.valid : 1.0f);
    b.total = p.weight ? counts.class_total : (float)p.vocab;
    b.uniform_per_class = p.label_smoothing / (float)p.vocab;
    b.simple = !p.weight && !p.upstream && !p.token_scaling && p.lse_square_scale == 0.0f && p.label_smoothing == 0.0f;
    return b;
}

/* What every formula says of its rows. */
template <typename T>
struct logits_row : vocab_rows::one_exchange {
    using type = T;
    using problem = cross_entropy::problem;
    using batch = cross_entropy::batch;
    static __device__ __forceinline__ batch batch_of(const problem &p) { return cross_entropy::batch_of(p); }
    static LIGER_HOST_DEVICE int64_t cols(const problem &p) { return p.vocab; }
    static __device__ __forceinline__ const T *input(const problem &p, int, int64_t r) {
        return (const T *)p.logits + r * p.logits_stride;
    }
    static __device__ __forceinline__ int64_t target(const problem &p, int64_t r) {
        return index_at(p.target, p.target_dtype, r);
    }
};

/* What the threads of a row find out together. The index is that of the largest value, the smallest if there are more. */
struct summary {
    softmax_state softmax; /* the target is part of the maximum, not of the sum */
    float shape; /* Σ w (x - base), for label smoothing: relative to base, so that a common offset does not cancel */
    float best;
    int64_t index;
};
__device__ __forceinline__ void take_better(float &best, int64_t &index, float other_best, int64_t other_index) {
    if (other_best > best || (other_best == best && other_index < index)) best = other_best, index = other_index;
}
__device__ __forceinline__ summary warp_merge(summary s) {
    s.softmax = warp_merge(s.softmax);
    s.shape = warp_sum(s.shape);
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const float best = __shfl_xor_sync(0xffffffffu, s.best, offset);
        const int64_t index = __shfl_xor_sync(0xffffffffu, (long long)s.index, offset);
        take_better(s.best, s.index, best, index);
    }
    return s;
}
__device__ __forceinline__ summary empty_summary() { return {softmax_empty(), 0.0f, -INFINITY, INT64_MAX}; }

/* What the threads of a row have found out. */
struct row_sums {
    float target;         /* logit of the target, soft-capped */
    softmax_state others; /* over all classes; the target is part of the maximum, not of the sum */
    float shape, base;
    int64_t predicted;
};

/* dlogits[j] = (term(x[j]) · probability - uniform · w[j]) · slope, but for the target's own element. */
struct factors {
    float probability, uniform;
    float hit, spread, own, weight, token; /* for finish_row */
};

/* The factors of a row's gradient, for a target in range. Few instructions: every thread of the row runs them. */
__device__ __forceinline__ factors factors_of(const problem &p, const batch &b, int64_t r, int64_t y, float target,
                                              softmax_state others) {
    const softmax_unit unit = softmax_unit_of(others.max);
    const float own = softmax_term(target, unit), sum = others.sum + own, inverse = reciprocal_approx(sum);
    if (b.simple) return {b.ce * inverse, 0.0f, b.ce, 0.0f, own, 1.0f, 1.0f};
    const float weight = p.weight ? p.weight[y] : 1.0f, token = p.token_scaling ? own * inverse : 1.0f;
    const float ce = (p.upstream ? p.upstream[r * p.upstream_stride] * token : token) * b.ce;
    const float hit = ce * weight * (1.0f - p.label_smoothing), uniform = ce * b.uniform_per_class;
    float spread = uniform * b.total;
    if (p.lse_square_scale != 0.0f)
        spread += ce * b.z_over_ce * p.lse_square_scale * (unit.offset * unit.ln + logf(sum));
    return {(hit + spread) * inverse, uniform, hit, spread, own, weight, token};
}

/* The same gradient, for logits_gradient. */
__device__ __forceinline__ logits_gradient_row gradient_of(int64_t y, const factors &f, softmax_state others,
                                                           float log_sum) {
    const softmax_unit unit = softmax_unit_of(others.max);
    logits_gradient_row row = {};
    row.max = others.max;
    row.log_sum = log_sum - softmax_exponent(others.max, unit) * unit.ln; /* offsets are rounded */
    row.by_p = f.spread;
    row.constant = -f.uniform;
    row.hit = -f.hit;
    row.own = -f.hit * (others.sum / (others.sum + f.own));
    row.target = y;
    return row;
}

/* A row's results and the gradient of the target's own logit, by one thread, after the others' gradients: 1 - p of a
 * confident row is others/(others + own), which does not cancel. */
__device__ __forceinline__ float finish_row(const problem &p, const batch &b, int64_t r, int64_t y, const factors &f,
                                            const row_sums &s) {
    const softmax_unit unit = softmax_unit_of(s.others.max);
    const float exponent = softmax_exponent(s.target, unit), sum = s.others.sum + f.own;
    const float log_sum = logf(sum), lse = unit.offset * unit.ln + log_sum, a = p.label_smoothing;
    const float nll = f.own >= s.others.sum ? log1pf(s.others.sum / f.own) : log_sum - exponent * unit.ln;
    const float z = p.lse_square_scale != 0.0f ? p.lse_square_scale * lse * lse * b.by_count * f.token : 0.0f;
    float loss = (1.0f - a) * f.weight * nll * b.by_weight;
    if (a > 0.0f)
        loss += b.uniform_per_class * ((log_sum - softmax_exponent(s.base, unit) * unit.ln) * b.total - s.shape) *
                b.by_weight;
    if (p.loss) p.loss[r] = loss * f.token + z;
    if (p.z_loss) p.z_loss[r] = z;
    if (p.accuracy) p.accuracy[r] = s.predicted == y ? 1.0f : 0.0f;
    if (p.predicted) p.predicted[r] = s.predicted;
    if (p.gradient) p.gradient[r] = gradient_of(y, f, s.others, log_sum);
    float d = (f.own * f.spread - s.others.sum * f.hit) / sum;
    if (a > 0.0f) d -= f.uniform * f.weight;
    return d * cap_slope(p, s.target);
}

/* A target out of range: NaN, and nothing is looked up. */
__device__ __forceinline__ void spoil_row(const problem &p, int64_t r, int64_t predicted) {
    if (p.loss) p.loss[r] = NAN;
    if (p.z_loss) p.z_loss[r] = NAN;
    if (p.accuracy) p.accuracy[r] = 0.0f;
    if (p.predicted) p.predicted[r] = predicted;
    if (p.gradient) p.gradient[r] = {0.0f, 0.0f, NAN};
}

__device__ __forceinline__ void ignore_row(const problem &p, int64_t r) {
    if (p.loss) p.loss[r] = 0.0f;
    if (p.z_loss) p.z_loss[r] = 0.0f;
    if (p.accuracy) p.accuracy[r] = 0.0f;
    if (p.predicted) p.predicted[r] = -1;
    if (p.gradient) p.gradient[r].target = -1;
}

} // namespace cross_entropy

#endif
