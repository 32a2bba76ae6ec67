/* jsd_cpu.c - what the generalized Jensen-Shannon divergence makes of an element on the CPU; cpu/divergence.h makes its kernel,
 * once per instruction set.
 *
 * Of P and Q let E be the larger, e·E the smaller, and w the weight of the smaller: M = E·g with g = w·e + (1 - w). Then
 *   value = -E·(g·log g + w·e·|x - y|),     x - log M = min(x - y, 0) - log g */
#include "liger/cpu/vec_math.h"
#include "liger/ops/jsd/jsd_problem.h"

/* e to a power below this is 0; differences of such powers are finite. */
#define LOWEST (-0x1p100f)

/* KL of e^a against e^b: factor = e^a, and its product with a - b, which is 0 where the factor is. */
LIGER_TEMPLATE void one_sided(const v_f32 a[2], const v_f32 b[2], v_f32 factor[2], v_f32 product[2]) {
    for (int j = 0; j < 2; j++) factor[j] = a[j];
    v_exp_each(2, factor);
    for (int j = 0; j < 2; j++) {
        const v_mask some = v_less(v_zero(), factor[j]);
        product[j] = v_select(some, v_mul(factor[j], v_sub(a[j], b[j])), factor[j]);
    }
}

LIGER_TEMPLATE void two_sided(struct mixture m, const v_f32 x[2], const v_f32 y[2], v_f32 value[2], v_f32 slope[2]) {
    const v_f32 beta = v_set(m.beta), rest = v_set(m.rest), lowest = v_set(LOWEST), zero = v_zero();
    v_f32 d[2], large[2], e[2];
    for (int j = 0; j < 2; j++) {
        const v_f32 a = v_max(lowest, x[j]), b = v_max(lowest, y[j]); /* in this order NaN stays */
        d[j] = v_sub(a, b);
        large[j] = v_max(a, b);
        e[j] = v_sub(zero, v_abs(d[j]));
    }
    v_exp_each(2, e);
    v_exp_each(2, large);
    for (int j = 0; j < 2; j++) {
        const v_mask x_is_larger = v_less(zero, d[j]);
        const v_f32 weight = v_select(x_is_larger, beta, rest), other = v_select(x_is_larger, rest, beta);
        const v_f32 g = v_fma(weight, e[j], other); /* 1 if e is: the sum of the weights is exact */
        const v_f32 log_g = v_log_normal(g), small = v_mul(large[j], e[j]);
        const v_f32 lost = v_fma(v_mul(weight, e[j]), v_abs(d[j]), v_mul(g, log_g));
        const v_f32 q = v_select(x_is_larger, large[j], small), below = v_select(x_is_larger, zero, d[j]);
        value[j] = v_sub(zero, v_mul(large[j], lost));
        slope[j] = v_mul(v_mul(rest, q), v_sub(below, log_g));
    }
}

LIGER_TEMPLATE void divergence_terms(const struct jsd_problem *p, const v_f32 x[2], const v_f32 y[2], v_f32 value[2],
                                     v_f32 slope[2]) {
    if (p->mixture.beta == 0.0f) {
        one_sided(y, x, slope, value);
        for (int j = 0; j < 2; j++) slope[j] = v_sub(v_zero(), slope[j]);
    } else if (p->mixture.rest == 0.0f) {
        one_sided(x, y, slope, value);
        for (int j = 0; j < 2; j++) slope[j] = v_add(slope[j], value[j]);
    } else {
        two_sided(p->mixture, x, y, value, slope);
    }
}

#define DIVERGENCE jsd
#include "liger/cpu/divergence.h"
