/* dyt_cpu.c - what dynamic tanh does to a row on the CPU; cpu/norm.h makes its kernels, once per instruction set. */
#include "liger/cpu/vec_math.h"
#include "liger/ops/dyt/dyt_problem.h"

LIGER_TEMPLATE void forward_row(liger_dtype t, liger_dtype tw, const struct dyt_forward_problem *p, int64_t r) {
    const void *x = row_of(p->x, r, f_size(t));
    void *y = row_of(p->y, r, f_size(t));
    const v_f32 alpha = v_set(f32_load(p->alpha_dtype, p->alpha, 0));
    V_FOR_EACH(i, n, p->cols, {
        v_f32 value = v_mul(v_load_n(tw, p->gamma, i, n), v_tanh(v_mul(alpha, v_load_n(t, x, i, n))));
        if (p->beta) value = v_add(value, v_load_n(tw, p->beta, i, n));
        v_store_n(t, y, i, n, value);
    });
}

/* 1 - tanh² from what tanh lacks to ±1, which does not cancel. */
LIGER_TEMPLATE v_f32 slope_of(v_f32 rest) { return v_mul(v_mul(v_set(4.0f), rest), v_sub(v_set(1.0f), rest)); }

LIGER_TEMPLATE void backward_row(liger_dtype t, liger_dtype tw, const struct dyt_backward_problem *p, int64_t r,
                                 float *const *partial) {
    const void *dy = row_of(p->dy, r, f_size(t)), *x = row_of(p->x, r, f_size(t));
    void *dx = p->dx.data ? row_of(p->dx, r, f_size(t)) : NULL;
    float *const dgamma = partial[0], *const dbeta = partial[1], *const dalpha = partial[2];
    const v_f32 alpha = v_set(f32_load(p->alpha_dtype, p->alpha, 0));
    v_f32 along = v_zero(), before = v_zero(); /* of long rows parts are added: one chain would lose digits */
    V_FOR_EACH(i, n, p->cols, {
        const v_f32 value = v_load_n(t, x, i, n), up = v_load_n(t, dy, i, n);
        v_f32 rest;
        const v_f32 tanh = v_tanh_and_rest(v_mul(alpha, value), &rest);
        const v_f32 u = v_mul(v_mul(up, v_load_n(tw, p->gamma, i, n)), slope_of(rest));
        if (i % 1024 == 0) before = v_add(before, along), along = v_zero();
        along = v_fma(u, value, along);
        if (dgamma) v_store_n(LIGER_F32, dgamma, i, n, v_fma(up, tanh, v_load_n(LIGER_F32, dgamma, i, n)));
        if (dbeta) v_store_n(LIGER_F32, dbeta, i, n, v_add(up, v_load_n(LIGER_F32, dbeta, i, n)));
        if (dx) v_store_n(t, dx, i, n, v_mul(alpha, u));
    });
    if (dalpha) *dalpha += v_sum(v_add(before, along));
}

#define NORM dyt
#define NORM_SUMS(p) (p)->dgamma, (p)->dbeta
#define NORM_TOTALS(p)                                                                                                 \
    { (p)->dalpha, (p)->alpha_dtype, 0 }
#include "liger/cpu/norm.h"
