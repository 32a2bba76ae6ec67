/* poly_norm_cpu.c - what PolyNorm does to a row on the CPU; cpu/norm.h makes its kernels, once per instruction set.
 *
 * Two passes over a row that stays in L1/L2 between them: the sums, the result. */
#include <math.h>

#include "liger/cpu/simd.h"
#include "liger/ops/poly_norm/poly_norm_problem.h"

LIGER_TEMPLATE void forward_row(liger_dtype t, liger_dtype tw, const struct poly_norm_forward_problem *p, int64_t r) {
    const void *x = row_of(p->x, r, f_size(t));
    void *y = row_of(p->y, r, f_size(t));
    v_f32 sum[2][3] = {{v_zero(), v_zero(), v_zero()}, {v_zero(), v_zero(), v_zero()}};
    V_FOR_EACH_CHAIN(i, n, k, 2, p->cols, {
        const v_f32 value = v_load_n(t, x, i, n);
        const v_f32 square = v_mul(value, value);
        const v_f32 cube = v_mul(square, value);
        sum[k][0] = v_fma(cube, cube, sum[k][0]);
        sum[k][1] = v_fma(square, square, sum[k][1]);
        sum[k][2] = v_add(square, sum[k][2]);
    });
    v_f32 factor[3];
    for (int k = 0; k < 3; k++) {
        const float rstd = 1.0f / sqrtf(v_sum(v_add(sum[0][k], sum[1][k])) / (float)p->cols + p->epsilon);
        if (p->rstd) p->rstd[3 * r + k] = rstd;
        factor[k] = v_set(f32_load(tw, p->weight, k) * rstd);
    }
    const v_f32 bias = v_set(f32_load(tw, p->bias, 0));
    V_FOR_EACH(i, n, p->cols, {
        const v_f32 value = v_load_n(t, x, i, n);
        const v_f32 inner = v_fma(v_fma(factor[0], value, factor[1]), value, factor[2]);
        v_store_n(t, y, i, n, v_fma(inner, value, bias));
    });
}

/* Sums over a row of dy · x³, dy · x², dy · x and dy. */
LIGER_TEMPLATE void sums_of_row(liger_dtype t, const void *dy, const void *x, int64_t cols, float sums[4]) {
    v_f32 sum[2][4];
    for (int k = 0; k < 8; k++) sum[k / 4][k % 4] = v_zero();
    V_FOR_EACH_CHAIN(i, n, k, 2, cols, {
        const v_f32 value = v_load_n(t, x, i, n);
        const v_f32 up = v_load_n(t, dy, i, n), once = v_mul(up, value), twice = v_mul(once, value);
        sum[k][0] = v_fma(twice, value, sum[k][0]);
        sum[k][1] = v_add(twice, sum[k][1]);
        sum[k][2] = v_add(once, sum[k][2]);
        sum[k][3] = v_add(up, sum[k][3]);
    });
    for (int k = 0; k < 4; k++) sums[k] = v_sum(v_add(sum[0][k], sum[1][k]));
}

LIGER_TEMPLATE void backward_row(liger_dtype t, liger_dtype tw, const struct poly_norm_backward_problem *p, int64_t r,
                                 float *const *partial) {
    const void *dy = row_of(p->dy, r, f_size(t)), *x = row_of(p->x, r, f_size(t));
    const float *rstd = p->rstd + 3 * r;
    float sums[4];
    sums_of_row(t, dy, x, p->cols, sums);
    for (int k = 0; k < 4; k++)
        if (partial[k]) *partial[k] += k < 3 ? rstd[k] * sums[k] : sums[k];
    if (p->dx.data == NULL) return;
    void *dx = row_of(p->dx, r, f_size(t));
    v_f32 factor[3], pull[3]; /* no power of rstd stands alone: its cube leaves the range of f32 */
    for (int k = 0; k < 3; k++) {
        const float scale = f32_load(tw, p->weight, k) * (float)(3 - k) * rstd[k];
        factor[k] = v_set(scale);
        pull[k] = v_set(scale * (rstd[k] * (sums[k] / (float)p->cols)) * rstd[k]);
    }
    V_FOR_EACH(i, n, p->cols, {
        const v_f32 value = v_load_n(t, x, i, n), square = v_mul(value, value);
        const v_f32 slope = v_fma(v_fma(factor[0], value, factor[1]), value, factor[2]);
        const v_f32 back = v_fma(v_fma(pull[0], square, pull[1]), square, pull[2]);
        v_store_n(t, dx, i, n, v_fnma(back, value, v_mul(slope, v_load_n(t, dy, i, n))));
    });
}

#define NORM poly_norm
#define NORM_SUMS(p)
#define NORM_TOTALS(p)                                                                                                 \
    {(p)->dweight, (p)->weight_dtype, 0}, {(p)->dweight, (p)->weight_dtype, 1}, {(p)->dweight, (p)->weight_dtype, 2},  \
    {                                                                                                                  \
        (p)->dbias, (p)->weight_dtype, 0                                                                               \
    }
#include "liger/cpu/norm.h"
