/* vec_math.h - elementary functions on vectors. Errors against the exact value are stated in ulp of f32.
 *
 * Range reduction and polynomials follow the single-precision functions of S. Moshier's Cephes library. */
#ifndef LIGER_CPU_VEC_MATH_H
#define LIGER_CPU_VEC_MATH_H

#include <math.h>

#include "liger/cpu/simd.h"

/* x = n·ln 2 + r with |r| < 0.35, and p for e^r = 1 + r + r²·p. Of one or two vectors: their steps alternate, where one alone
 * would wait for each of its own. */
LIGER_TEMPLATE void v_exp_parts(int vectors, const v_f32 *x, v_f32 *n, v_f32 *r, v_f32 *p) {
    for (int j = 0; j < vectors; j++) {
        const v_f32 bounded = v_min(v_set(89.0f), v_max(v_set(-105.0f), x[j])); /* in this order NaN passes through */
        n[j] = v_round(v_mul(bounded, v_set(1.44269504088896341f)));
        r[j] = v_fnma(n[j], v_set(0.693359375f), bounded); /* ln 2 in two parts: the product with the first is exact */
    }
    for (int j = 0; j < vectors; j++) r[j] = v_fnma(n[j], v_set(-2.12194440e-4f), r[j]);
    for (int j = 0; j < vectors; j++) p[j] = v_fma(v_set(1.9875691500e-4f), r[j], v_set(1.3981999507e-3f));
    for (int j = 0; j < vectors; j++) p[j] = v_fma(p[j], r[j], v_set(8.3334519073e-3f));
    for (int j = 0; j < vectors; j++) p[j] = v_fma(p[j], r[j], v_set(4.1665795894e-2f));
    for (int j = 0; j < vectors; j++) p[j] = v_fma(p[j], r[j], v_set(1.6666665459e-1f));
    for (int j = 0; j < vectors; j++) p[j] = v_fma(p[j], r[j], v_set(5.0000001201e-1f));
}

/* e^x within 2 ulp; 0 below -104, +inf above 88.73; NaN stays. */
LIGER_TEMPLATE void v_exp_each(int vectors, v_f32 *x) {
    v_f32 n[2], r[2], p[2];
    v_exp_parts(vectors, x, n, r, p);
    for (int j = 0; j < vectors; j++) p[j] = v_fma(p[j], v_mul(r[j], r[j]), v_add(r[j], v_set(1.0f)));
    for (int j = 0; j < vectors; j++) x[j] = v_scale2(p[j], n[j]);
}
/* x becomes e^x - 1 within 2 ulp, of x up to 88, and e, if there is one, e^x as above; NaN stays. */
LIGER_TEMPLATE void v_expm1_each(int vectors, v_f32 *x, v_f32 *e) {
    v_f32 n[2], r[2], p[2];
    v_exp_parts(vectors, x, n, r, p);
    for (int j = 0; e && j < vectors; j++)
        e[j] = v_scale2(v_fma(p[j], v_mul(r[j], r[j]), v_add(r[j], v_set(1.0f))), n[j]);
    for (int j = 0; j < vectors; j++) p[j] = v_fma(p[j], v_mul(r[j], r[j]), r[j]);
    for (int j = 0; j < vectors; j++) x[j] = v_sub(v_scale2(v_set(1.0f), n[j]), v_set(1.0f));
    for (int j = 0; j < vectors; j++) x[j] = v_add(v_scale2(p[j], n[j]), x[j]);
}
LIGER_TEMPLATE v_f32 v_exp(v_f32 x) {
    v_exp_each(1, &x);
    return x;
}

/* log x of a positive normal number within 1 ulp. Of 0, NaN and infinity it is some number: whoever may have these multiplies
 * by what is 0, NaN or infinite there, or picks. */
LIGER_TEMPLATE v_f32 v_log_normal(v_f32 x) {
    v_f32 n;
    const v_f32 f = v_sub(v_split2(x, &n), v_set(1.0f)), square = v_mul(f, f);
    v_f32 p = v_fma(v_set(7.0376836292e-2f), f, v_set(-1.1514610310e-1f));
    p = v_fma(p, f, v_set(1.1676998740e-1f));
    p = v_fma(p, f, v_set(-1.2420140846e-1f));
    p = v_fma(p, f, v_set(1.4249322787e-1f));
    p = v_fma(p, f, v_set(-1.6668057665e-1f));
    p = v_fma(p, f, v_set(2.0000714765e-1f));
    p = v_fma(p, f, v_set(-2.4999993993e-1f));
    p = v_fma(p, f, v_set(3.3333331174e-1f));
    p = v_fma(n, v_set(-2.12194440e-4f), v_mul(v_mul(p, f), square)); /* ln 2 in two parts, as in v_exp */
    p = v_fnma(v_set(0.5f), square, p);
    return v_fma(n, v_set(0.693359375f), v_add(f, p));
}

/* log(1 + x) within 3 ulp, of x > -1 whose sum with 1 is finite; NaN stays. What the sum loses is a part of it. */
LIGER_TEMPLATE v_f32 v_log1p(v_f32 x) {
    const v_f32 sum = v_add(x, v_set(1.0f)), lost = v_sub(x, v_sub(sum, v_set(1.0f)));
    return v_add(v_log_normal(sum), v_div(lost, sum));
}

/* 1 / (1 + e^-x) within 3 ulp. */
LIGER_TEMPLATE v_f32 v_sigmoid(v_f32 x) { return v_div(v_set(1.0f), v_add(v_set(1.0f), v_exp(v_sub(v_zero(), x)))); }

/* tanh(x) within 2 ulp: an odd polynomial near 0, where 1 - 2/(1 + e^2x) would cancel. rest: 1/(1 + e^(2|x|)) within 4 ulp,
 * which says how far tanh is from ±1 where its own last bits no longer do: 1 - tanh² = 4·rest·(1 - rest). */
LIGER_TEMPLATE v_f32 v_tanh_and_rest(v_f32 x, v_f32 *rest) {
    const v_f32 a = v_abs(x), z = v_mul(x, x);
    const v_f32 e = v_exp(v_add(a, a));
    *rest = v_div(v_set(1.0f), v_add(e, v_set(1.0f)));
    const v_f32 large = v_sub(v_set(1.0f), v_add(*rest, *rest));
    v_f32 p = v_set(-5.70498872745e-3f);
    p = v_fma(p, z, v_set(2.06390887954e-2f));
    p = v_fma(p, z, v_set(-5.37397155531e-2f));
    p = v_fma(p, z, v_set(1.33314422036e-1f));
    p = v_fma(p, z, v_set(-3.33332819422e-1f));
    const v_f32 small = v_fma(v_mul(p, z), x, x);
    const v_f32 signed_large = v_select(v_less(x, v_zero()), v_sub(v_zero(), large), large);
    return v_select(v_less(a, v_set(0.625f)), small, signed_large);
}
LIGER_TEMPLATE v_f32 v_tanh(v_f32 x) {
    v_f32 rest;
    return v_tanh_and_rest(x, &rest);
}

/* log x within 2 ulp of any x: -inf of 0, NaN below it. */
LIGER_TEMPLATE v_f32 v_log(v_f32 x) {
    const v_mask subnormal = v_less(x, v_set(0x1p-126f));
    const v_f32 shift = v_select(subnormal, v_set(24 * 0.693147181f), v_zero());
    v_f32 y = v_sub(v_log_normal(v_select(subnormal, v_mul(x, v_set(0x1p24f)), x)), shift);
    y = v_select(v_less(v_zero(), x), y, v_select(v_less(x, v_zero()), v_set(NAN), v_set(-INFINITY)));
    return v_select(v_less(v_abs(x), v_set(INFINITY)), y, x); /* +inf and NaN stay */
}

#endif
