/* rms_norm_cpu.c - what RMSNorm does to a row on the CPU; cpu/norm.h makes its kernels, once per instruction set.
 *
 * Two passes over a row that stays in L1/L2 between them: the sum, then the result. */
#include "liger/cpu/simd.h"
#include "liger/ops/rms_norm/rms_norm.h"
#include "liger/ops/rms_norm/rms_norm_problem.h"

#include <math.h>

/* weight + offset of one vector of columns. */
LIGER_TEMPLATE v_f32 scale_of(liger_dtype t, liger_dtype tw, const void *weight, float offset, bool round, int64_t i,
                              int n) {
    const v_f32 scale = v_add(v_load_n(tw, weight, i, n), v_set(offset));
    return round && tw == t ? v_round_to(t, scale) : scale;
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE float sum_of_squares(liger_dtype t, const void *x, int64_t cols) {
    v_f32 sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 4, cols, {
        const v_f32 value = v_load_n(t, x, i, n);
        sum[k] = v_fma(value, value, sum[k]);
    });
    return v_sum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
}

LIGER_TEMPLATE void add_row(liger_dtype t, const void *x, const void *residual, void *sum, int64_t cols) {
    V_FOR_EACH(i, n, cols, v_store_n(t, sum, i, n, v_add(v_load_n(t, x, i, n), v_load_n(t, residual, i, n))));
}

LIGER_TEMPLATE void scale_row(liger_dtype t, liger_dtype tw, const struct rms_norm_forward_problem *p, const void *x,
                              void *y, float rstd) {
    const bool llama = p->casting == LIGER_CAST_LLAMA, none = p->casting == LIGER_CAST_NONE;
    const v_f32 factor = v_set(rstd);
    if (p->weight == NULL) {
        V_FOR_EACH(i, n, p->cols, v_store_n(t, y, i, n, v_mul(v_load_n(t, x, i, n), factor)));
    } else if (llama && t != LIGER_F32) {
        V_FOR_EACH(i, n, p->cols, {
            const v_f32 normal = v_round_to(t, v_mul(v_load_n(t, x, i, n), factor));
            v_store_n(t, y, i, n, v_mul(normal, scale_of(t, tw, p->weight, p->offset, false, i, n)));
        });
    } else {
        V_FOR_EACH(i, n, p->cols, {
            const v_f32 normal = v_mul(v_load_n(t, x, i, n), factor);
            v_store_n(t, y, i, n, v_mul(normal, scale_of(t, tw, p->weight, p->offset, none, i, n)));
        });
    }
}

LIGER_TEMPLATE void forward_row(liger_dtype t, liger_dtype tw, const struct rms_norm_forward_problem *p, int64_t r) {
    const size_t element = liger_dtype_size(t);
    const void *x = row_of(p->x, r, element);
    if (p->residual.data) {
        void *sum = row_of(p->sum, r, element);
        add_row(t, x, row_of(p->residual, r, element), sum, p->cols);
        x = sum;
    }
    float rstd = 1.0f / sqrtf(sum_of_squares(t, x, p->cols) / (float)p->cols + p->epsilon);
    if (p->casting == LIGER_CAST_NONE) rstd = f32_round_to(t, rstd);
    scale_row(t, tw, p, x, row_of(p->y, r, element), rstd);
    if (p->rstd) p->rstd[r] = rstd;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* m = dy · (weight + offset), the gradient of x̂ = x·rstd. */
LIGER_TEMPLATE v_f32 m_of(liger_dtype t, liger_dtype tw, const struct rms_norm_backward_problem *p, const void *dy,
                          int64_t i, int n) {
    const v_f32 upstream = v_load_n(t, dy, i, n);
    return p->weight ? v_mul(upstream, scale_of(t, tw, p->weight, p->offset, false, i, n)) : upstream;
}

/* Σ m · x̂ */
LIGER_TEMPLATE float dot_row(liger_dtype t, liger_dtype tw, const struct rms_norm_backward_problem *p, const void *dy,
                             const void *x, v_f32 rstd) {
    v_f32 sum[2] = {v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 2, p->cols,
                     { sum[k] = v_fma(m_of(t, tw, p, dy, i, n), v_mul(v_load_n(t, x, i, n), rstd), sum[k]); });
    return v_sum(v_add(sum[0], sum[1]));
}

/* dx and the part of dweight in one pass, because dy and x are then read once from L1. dx is written as
 * rstd · (m - x̂ · mean(m·x̂)), whose parts are of the size of dy until the last product: rstd³ leaves the range of f32
 * for an x of 1e-14 or 1e15. */
LIGER_TEMPLATE void backward_row(liger_dtype t, liger_dtype tw, const struct rms_norm_backward_problem *p, int64_t r,
                                 float *const *partial) {
    const size_t element = liger_dtype_size(t);
    const bool round = p->casting == LIGER_CAST_LLAMA && t != LIGER_F32;
    const void *dy = row_of(p->dy, r, element), *x = row_of(p->x, r, element);
    const void *dsum = p->dsum.data ? row_of(p->dsum, r, element) : NULL;
    void *dx = p->dx.data ? row_of(p->dx, r, element) : NULL;
    float *dweight = partial[0];
    const v_f32 factor = v_set(p->rstd[r]);
    v_f32 mean = v_zero();
    if (dx) mean = v_set(dot_row(t, tw, p, dy, x, factor) / (float)p->cols);
    V_FOR_EACH(i, n, p->cols, {
        const v_f32 normal = v_mul(v_load_n(t, x, i, n), factor);
        if (dweight) {
            const v_f32 rounded = round ? v_round_to(t, normal) : normal;
            const v_f32 sum = v_fma(v_load_n(t, dy, i, n), rounded, v_load_n(LIGER_F32, dweight, i, n));
            v_store_n(LIGER_F32, dweight, i, n, sum);
        }
        if (dx) {
            v_f32 gradient = v_mul(factor, v_fnma(mean, normal, m_of(t, tw, p, dy, i, n)));
            if (dsum) gradient = v_add(gradient, v_load_n(t, dsum, i, n));
            v_store_n(t, dx, i, n, gradient);
        }
    });
}

#define NORM rms_norm
#define NORM_SUMS(p) (p)->dweight
#include "liger/cpu/norm.h"
