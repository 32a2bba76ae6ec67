/* cross_entropy_row.cuh - the scalar arithmetic of one row, shared by both row kernels: from a row's maximum and sums to
 * its results and the factors of its gradient. */
#ifndef LIGER_OPS_CROSS_ENTROPY_ROW_CUH
#define LIGER_OPS_CROSS_ENTROPY_ROW_CUH

#include "liger/cuda/cluster.cuh"
#include "liger/cuda/pack.cuh"
#include "liger/cuda/softmax_state.cuh"
#include "liger/ops/cross_entropy/cross_entropy_problem.h"

namespace cross_entropy {

using problem = cross_entropy_rows_problem;

__device__ __forceinline__ int64_t target_at(const problem &p, int64_t r) {
    return p.target_dtype == LIGER_I32 ? (int64_t)((const int32_t *)p.target)[r] : ((const int64_t *)p.target)[r];
}

__device__ __forceinline__ float capped(const problem &p, float x) {
    return p.softcap > 0.0f ? p.softcap * tanhf(x / p.softcap) : x;
}
/* Derivative of the soft cap where it gave x. */
__device__ __forceinline__ float cap_slope(const problem &p, float x) {
    const float ratio = x / p.softcap;
    return p.softcap > 0.0f ? 1.0f - ratio * ratio : 1.0f;
}

/* What is the same for all rows: read once per block. */
struct batch {
    float by_weight, by_count;      /* of loss and z-loss */
    float ce, z;                    /* of their gradients */
    float total, uniform_per_class; /* Σ w, and label_smoothing/vocab */
};
__device__ __forceinline__ batch batch_of(const problem &p) {
    const cross_entropy_counts counts = *p.counts;
    batch b;
    b.by_weight = p.mean ? 1.0f / counts.weight_sum : 1.0f;
    b.by_count = p.mean ? 1.0f / counts.valid : 1.0f;
    b.ce = p.raw_gradient ? 1.0f : b.by_weight;
    b.z = p.raw_gradient ? (p.mean ? counts.weight_sum / counts.valid : 1.0f) : b.by_count;
    b.total = p.weight ? counts.class_total : (float)p.vocab;
    b.uniform_per_class = p.label_smoothing / (float)p.vocab;
    return b;
}

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
__device__ __forceinline__ summary merge(summary a, summary b) {
    a.softmax = softmax_merge(a.softmax, b.softmax);
    a.shape += b.shape;
    take_better(a.best, a.index, b.best, b.index);
    return a;
}

/* dlogits[j] = (exp(x[j] - max) · probability - uniform · w[j]) · slope, but for the target's own element: `own`. */
struct factors {
    float probability, uniform, own;
};

/* Everything a row with a target in range gives. `target` is its logit, soft-capped. `others` is the sum over all classes
 * but the target, relative to the maximum over all: 1 - p of a confident row is then others/(others + own), which does not
 * cancel. */
__device__ __forceinline__ factors finish_row(const problem &p, const batch &b, int64_t r, int64_t y, float target,
                                              softmax_state others, float shape, float base, int64_t predicted,
                                              bool writes) {
    const float max = others.max, own = expf(target - max), sum = others.sum + own, inverse = 1.0f / sum;
    const float log_sum = target == max ? log1pf(others.sum) : logf(sum), lse = max + log_sum;
    const float weight = p.weight ? p.weight[y] : 1.0f, a = p.label_smoothing;
    const float token = p.token_scaling ? own * inverse : 1.0f;
    if (writes) {
        const float z = p.lse_square_scale * lse * lse * b.by_count * token;
        float loss = (1.0f - a) * weight * ((max - target) + log_sum) * b.by_weight;
        if (a > 0.0f) loss += b.uniform_per_class * (((max - base) + log_sum) * b.total - shape) * b.by_weight;
        if (p.loss) p.loss[r] = loss * token + z;
        if (p.z_loss) p.z_loss[r] = z;
        if (p.accuracy) p.accuracy[r] = predicted == y ? 1.0f : 0.0f;
        if (p.predicted) p.predicted[r] = predicted;
    }
    const float upstream = (p.upstream ? p.upstream[r * p.upstream_stride] : 1.0f) * token;
    const float hit = upstream * b.ce * weight * (1.0f - a), uniform = upstream * b.ce * b.uniform_per_class;
    const float spread = uniform * b.total + upstream * b.z * 2.0f * p.lse_square_scale * lse;
    float d = (own * spread - others.sum * hit) * inverse;
    if (a > 0.0f) d -= uniform * weight;
    return {(hit + spread) * inverse, uniform, d * cap_slope(p, target)};
}

/* A target out of range: NaN, and nothing is looked up. */
__device__ __forceinline__ factors spoil_row(const problem &p, int64_t r, int64_t predicted, bool writes) {
    if (writes) {
        if (p.loss) p.loss[r] = NAN;
        if (p.z_loss) p.z_loss[r] = NAN;
        if (p.accuracy) p.accuracy[r] = 0.0f;
        if (p.predicted) p.predicted[r] = predicted;
    }
    return {NAN, NAN, NAN};
}

__device__ __forceinline__ void ignore_row(const problem &p, int64_t r) {
    if (p.loss) p.loss[r] = 0.0f;
    if (p.z_loss) p.z_loss[r] = 0.0f;
    if (p.accuracy) p.accuracy[r] = 0.0f;
    if (p.predicted) p.predicted[r] = -1;
}

} // namespace cross_entropy

#endif
