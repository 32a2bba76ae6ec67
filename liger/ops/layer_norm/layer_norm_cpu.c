/* layer_norm_cpu.c - what LayerNorm does to a row on the CPU; cpu/norm.h makes its kernels, once per instruction set.
 *
 * Three passes over a row that stays in L1/L2 between them: the mean, the variance, the result. */
#include "liger/cpu/moments.h"
#include "liger/ops/layer_norm/layer_norm_problem.h"

#include <math.h>

/* ---- forward ---------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE void scale_row(liger_dtype t, liger_dtype tw, const struct layer_norm_forward_problem *p, const void *x,
                              void *y, const struct moments *m, float rstd) {
    const v_f32 mean = v_set(m->mean), scale = v_set(rstd), shift = v_set(-m->missing * rstd);
    V_FOR_EACH(i, n, p->cols, {
        v_f32 value = v_fma(v_sub(v_load_n(t, x, i, n), mean), scale, shift);
        if (p->weight) value = v_mul(value, v_load_n(tw, p->weight, i, n));
        if (p->bias) value = v_add(value, v_load_n(tw, p->bias, i, n));
        v_store_n(t, y, i, n, value);
    });
}

LIGER_TEMPLATE void forward_row(liger_dtype t, liger_dtype tw, const struct layer_norm_forward_problem *p, int64_t r) {
    const size_t element = f_size(t);
    const void *x = row_of(p->x, r, element);
    const struct moments m = moments_of(t, x, p->cols);
    const float rstd = 1.0f / sqrtf(m.variance + p->epsilon);
    scale_row(t, tw, p, x, row_of(p->y, r, element), &m, rstd);
    if (p->mean) p->mean[r] = m.mean;
    if (p->rstd) p->rstd[r] = rstd;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* One row: x̂ = (x - mean) · rstd, and g = dy · weight, its gradient. */
struct row {
    const struct layer_norm_backward_problem *p;
    const void *dy, *x;
    v_f32 mean, rstd;
};

LIGER_TEMPLATE v_f32 normal_of(liger_dtype t, const struct row *row, int64_t i, int n) {
    return v_mul(v_sub(v_load_n(t, row->x, i, n), row->mean), row->rstd);
}
LIGER_TEMPLATE v_f32 g_of(liger_dtype tw, const struct row *row, v_f32 dy, int64_t i, int n) {
    return row->p->weight ? v_mul(dy, v_load_n(tw, row->p->weight, i, n)) : dy;
}

/* The means of g and of g·x̂. */
LIGER_TEMPLATE void means_of_row(liger_dtype t, liger_dtype tw, const struct row *row, v_f32 *of_g, v_f32 *of_product) {
    v_f32 sum[2] = {v_zero(), v_zero()}, dot[2] = {v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 2, row->p->cols, {
        const v_f32 g = g_of(tw, row, v_load_n(t, row->dy, i, n), i, n);
        sum[k] = v_add(sum[k], g);
        dot[k] = v_fma(g, normal_of(t, row, i, n), dot[k]);
    });
    *of_g = v_set(v_sum(v_add(sum[0], sum[1])) / (float)row->p->cols);
    *of_product = v_set(v_sum(v_add(dot[0], dot[1])) / (float)row->p->cols);
}

LIGER_TEMPLATE void backward_row(liger_dtype t, liger_dtype tw, const struct layer_norm_backward_problem *p, int64_t r,
                                 float *const *partial) {
    const size_t element = f_size(t);
    const struct row row = {p, row_of(p->dy, r, element), row_of(p->x, r, element), v_set(p->mean[r]),
                            v_set(p->rstd[r])};
    void *dx = p->dx.data ? row_of(p->dx, r, element) : NULL;
    float *dweight = partial[0], *dbias = partial[1];
    v_f32 mean_g = v_zero(), mean_product = v_zero();
    if (dx) means_of_row(t, tw, &row, &mean_g, &mean_product);
    V_FOR_EACH(i, n, p->cols, {
        const v_f32 dy = v_load_n(t, row.dy, i, n), normal = normal_of(t, &row, i, n);
        if (dweight) v_store_n(LIGER_F32, dweight, i, n, v_fma(dy, normal, v_load_n(LIGER_F32, dweight, i, n)));
        if (dbias) v_store_n(LIGER_F32, dbias, i, n, v_add(dy, v_load_n(LIGER_F32, dbias, i, n)));
        if (dx) {
            const v_f32 rest = v_fnma(mean_product, normal, v_sub(g_of(tw, &row, dy, i, n), mean_g));
            v_store_n(t, dx, i, n, v_mul(row.rstd, rest));
        }
    });
}

#define NORM layer_norm
#define NORM_SUMS(p) (p)->dweight, (p)->dbias
#include "liger/cpu/norm.h"
