/* moments.h - mean and variance of values in one piece: two passes over what stays in L1/L2 between them. */
#ifndef LIGER_CPU_MOMENTS_H
#define LIGER_CPU_MOMENTS_H

#include <math.h>

#include "liger/cpu/simd.h"

struct moments {
    float mean, missing; /* missing: what the mean lacks, being rounded */
    float variance;      /* the biased one */
};

/* Means of x - centre, and of its square. */
struct means_about {
    float first, second;
};

LIGER_TEMPLATE struct means_about means_about(liger_dtype t, const void *x, int64_t cols, float centre, bool second) {
    v_f32 sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()}, squares[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 4, cols, {
        const v_f32 rest = v_first(v_sub(v_load_n(t, x, i, n), v_set(centre)), n);
        sum[k] = v_add(sum[k], rest);
        if (second) squares[k] = v_fma(rest, rest, squares[k]);
    });
    return (struct means_about){.first = v_sum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3]))) / (float)cols,
                                .second = v_sum(v_add(v_add(squares[0], squares[1]), v_add(squares[2], squares[3]))) /
                                          (float)cols};
}

/* The sum of values with a large common offset is off by some of the mean's last bits, which count where little else is left
 * of them, and so do those that the mean has no room for: what remains without the mean says by how much. Where the first value
 * is the mean as far as the sum can tell, it takes its place: of values that are one nothing remains. */
LIGER_TEMPLATE struct moments moments_of(liger_dtype t, const void *x, int64_t cols) {
    const float sum = means_about(t, x, cols, 0.0f, false).first, first = f32_load(t, x, 0);
    const float error = (float)(cols / 16 + 8) * 0x1p-24f * fabsf(sum);
    const float rough = error < INFINITY && fabsf(first - sum) <= error ? first : sum;
    const struct means_about rest = means_about(t, x, cols, rough, true);
    const float variance = rest.second - rest.first * rest.first;
    const float mean = rough * rough > rest.second ? rough + rest.first : rough;
    return (struct moments){.mean = mean,
                            .missing = fabsf(mean) < INFINITY ? rest.first - (mean - rough) : 0.0f,
                            .variance = variance < 0 ? 0 : variance}; /* NaN is not less than 0 */
}

#endif
