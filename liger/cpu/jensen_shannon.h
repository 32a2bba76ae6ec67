/* jensen_shannon.h - elements of the generalized Jensen-Shannon divergence, from x = log Q and y = log P; as on CUDA
 * (cuda/jensen_shannon.cuh).
 *
 * Each mode of the mixture (core/mixture.h) has a formula of its own. Of `vectors` vectors, one or two, they make the value, its
 * derivative by x, and Q. Where both P and Q are 0 there is nothing, whatever the other logarithm is. */
#ifndef LIGER_CPU_JENSEN_SHANNON_H
#define LIGER_CPU_JENSEN_SHANNON_H

#include "liger/core/mixture.h"
#include "liger/cpu/vec_math.h"

struct js_elements {
    v_f32 value[2], slope[2], q[2];
};

/* e to a power below this is 0; differences of such powers are finite. */
#define JS_LOWEST (-0x1p100f)

/* KL of e^a against e^b: factor = e^a, and its product with a - b, which is 0 where the factor is. */
LIGER_TEMPLATE void js_one_sided(int vectors, const v_f32 *a, const v_f32 *b, v_f32 *factor, v_f32 *product) {
    for (int j = 0; j < vectors; j++) factor[j] = a[j];
    v_exp_each(vectors, factor);
    for (int j = 0; j < vectors; j++) {
        const v_mask some = v_less(v_zero(), factor[j]);
        product[j] = v_select(some, v_mul(factor[j], v_sub(a[j], b[j])), factor[j]);
    }
}

LIGER_TEMPLATE void js_to_teacher(int vectors, const v_f32 *x, const v_f32 *y, struct js_elements *to) {
    js_one_sided(vectors, y, x, to->slope, to->value);
    for (int j = 0; j < vectors; j++) to->slope[j] = v_sub(v_zero(), to->slope[j]), to->q[j] = x[j];
    v_exp_each(vectors, to->q);
}

LIGER_TEMPLATE void js_to_student(int vectors, const v_f32 *x, const v_f32 *y, struct js_elements *to) {
    js_one_sided(vectors, x, y, to->q, to->value);
    for (int j = 0; j < vectors; j++) to->slope[j] = v_add(to->q[j], to->value[j]);
}

/* x - y, the larger of P and Q, what the smaller is of it, and that less 1. */
struct js_pair {
    v_f32 apart[2], large[2], ratio[2], less[2];
};
LIGER_TEMPLATE struct js_pair js_pair_of(int vectors, const v_f32 *x, const v_f32 *y) {
    struct js_pair of = {.ratio = {v_zero(), v_zero()}};
    for (int j = 0; j < vectors; j++) {
        const v_f32 a = v_max(v_set(JS_LOWEST), x[j]), b = v_max(v_set(JS_LOWEST), y[j]); /* in this order NaN stays */
        of.apart[j] = v_sub(a, b);
        of.large[j] = v_max(a, b);
        of.less[j] = v_sub(v_zero(), v_abs(of.apart[j]));
    }
    v_expm1_each(vectors, of.less, of.ratio);
    v_exp_each(vectors, of.large);
    return of;
}

/* Of P and Q let E be the larger, e·E the smaller, and w the weight of the smaller: M = E·g with g = w·e + (1 - w). Then
 *   value = -E·(g·log g + w·e·|x - y|),     x - log M = min(x - y, 0) - log g */
LIGER_TEMPLATE void js_even(int vectors, struct mixture m, const v_f32 *x, const v_f32 *y, struct js_elements *to) {
    const v_f32 beta = v_set(m.beta), rest = v_set(m.rest), zero = v_zero();
    const struct js_pair of = js_pair_of(vectors, x, y);
    for (int j = 0; j < vectors; j++) {
        const v_f32 d = of.apart[j], large = of.large[j], e = of.ratio[j];
        const v_mask x_is_larger = v_less(zero, d);
        const v_f32 weight = v_select(x_is_larger, beta, rest), other = v_select(x_is_larger, rest, beta);
        const v_f32 g = v_fma(weight, e, other), log_g = v_log1p(v_mul(weight, of.less[j])); /* of P near Q too */
        const v_f32 below = v_select(x_is_larger, zero, d);
        const v_f32 lost = v_fma(v_mul(weight, e), v_abs(d), v_mul(g, log_g));
        to->q[j] = v_select(x_is_larger, large, v_mul(large, e));
        to->value[j] = v_sub(zero, v_mul(large, lost));
        to->slope[j] = v_mul(v_mul(rest, to->q[j]), v_sub(below, log_g));
    }
}

/* Of P and Q let A be the one with the smaller weight s, B the other, and d = log A - log B: M = B·(1 + s·(e^d - 1)). Then
 *   log M - log B = l = log1p(s·expm1(d)),   log A - log M = d - l,     d as far as `far`, and l grows by what is beyond */
V_OUT_OF_LINE void js_skew(bool a_is_p, int vectors, struct mixture m, const v_f32 *x, const v_f32 *y,
                           struct js_elements *to) {
    const v_f32 small = v_set(a_is_p ? m.beta : m.rest), most = v_set(a_is_p ? m.rest : m.beta);
    const v_f32 far = v_set(m.far), zero = v_zero();
    const struct js_pair of = js_pair_of(vectors, x, y);
    v_f32 d[2], near[2], grown[2];
    for (int j = 0; j < vectors; j++) {
        d[j] = a_is_p ? v_sub(zero, of.apart[j]) : of.apart[j];
        near[j] = grown[j] = v_min(far, d[j]);
    }
    v_expm1_each(vectors, grown, NULL);
    for (int j = 0; j < vectors; j++) {
        const v_mask a_is_larger = v_less(zero, d[j]);
        const v_f32 large = of.large[j], other = v_mul(large, of.ratio[j]);
        const v_f32 a = v_select(a_is_larger, large, other), b = v_select(a_is_larger, other, large);
        const v_f32 l = v_log1p(v_mul(small, grown[j])), beyond = v_max(zero, v_sub(d[j], far));
        const v_f32 of_a = v_mul(v_mul(small, a), v_sub(near[j], l)), of_b = v_mul(v_mul(most, b), v_add(beyond, l));
        to->value[j] = v_sub(of_a, of_b);
        to->slope[j] = a_is_p ? v_sub(zero, of_b) : of_a;
        to->q[j] = a_is_p ? b : a;
    }
}

/* With a mode that is known when this is compiled, one formula remains. */
LIGER_TEMPLATE void js_elements_of(int vectors, enum mixture_mode mode, struct mixture m, const v_f32 *x,
                                   const v_f32 *y, struct js_elements *to) {
    switch (mode) {
        case MIXTURE_TO_TEACHER: js_to_teacher(vectors, x, y, to); break;
        case MIXTURE_TO_STUDENT: js_to_student(vectors, x, y, to); break;
        case MIXTURE_FEW_P: js_skew(true, vectors, m, x, y, to); break;
        case MIXTURE_FEW_Q: js_skew(false, vectors, m, x, y, to); break;
        default: js_even(vectors, m, x, y, to); break;
    }
}

#endif
