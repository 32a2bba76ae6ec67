/* simplex.h - the threshold tau of the nearest point of the simplex, y = max(x - tau, 0) with the sum 1, on the CPU: by Newton's
 * method, which rises from any tau of a part of the row until the support stays as it is. */
#ifndef LIGER_CPU_SIMPLEX_H
#define LIGER_CPU_SIMPLEX_H

#include <math.h>

#include "liger/cpu/simd.h"

/* tau = origin + rest + lower; `above` is the largest float that is not above tau, so that x > tau is x > above. */
struct threshold {
    float above, origin, rest, lower;
};

/* x with the lanes behind the first n at -inf. */
LIGER_TEMPLATE v_f32 padded(v_f32 x, int n) {
    return n == V_LANES ? x : v_select(v_mask_of((1u << n) - 1), x, v_set(-INFINITY));
}

enum { SIMPLEX_CHAINS = 4 };

/* The largest value, and those of SIMPLEX_CHAINS · V_LANES parts of the row; +inf: a value is NaN or +inf. */
LIGER_TEMPLATE float simplex_largest(liger_dtype t, const void *x, int64_t cols, float *of_lanes) {
    v_f32 most[SIMPLEX_CHAINS], wrong = v_zero();
    for (int k = 0; k < SIMPLEX_CHAINS; k++) most[k] = v_set(-INFINITY);
    V_FOR_EACH_CHAIN(i, n, k, SIMPLEX_CHAINS, cols, {
        const v_f32 value = padded(v_load_n(t, x, i, n), n);
        wrong = v_select(v_less(value, v_set(INFINITY)), wrong, v_set(1.0f));
        most[k] = v_max(value, most[k]);
    });
    for (int k = 0; k < SIMPLEX_CHAINS; k++) v_store_f32(of_lanes + k * V_LANES, most[k]);
    const float max = v_max_across(v_max(v_max(most[0], most[1]), v_max(most[2], most[3])));
    return v_max_across(wrong) > 0.0f ? INFINITY : max;
}

struct members {
    double sum; /* Σ (x - origin) */
    int64_t count;
};

/* What an addition rounds away is added apart: the sum of a lane is that of two floats. */
LIGER_TEMPLATE struct members members_above(liger_dtype t, const void *x, int64_t count, float above, float origin) {
    v_f32 sum = v_zero(), rounded = v_zero();
    int64_t members = 0;
    V_FOR_EACH(i, n, count, {
        const v_f32 value = padded(v_load_n(t, x, i, n), n);
        const v_mask in = v_less(v_set(above), value);
        const uint32_t bits = v_bits_of(in);
        if (bits != 0) {
            const v_f32 d = v_select(in, v_sub(value, v_set(origin)), v_zero());
            const v_f32 next = v_add(sum, d);
            const v_f32 added = v_sub(next, sum);
            rounded = v_add(rounded, v_add(v_sub(sum, v_sub(next, added)), v_sub(d, added)));
            sum = next;
            members += __builtin_popcount(bits);
        }
    });
    float high[V_LANES], low[V_LANES];
    v_store_f32(high, sum), v_store_f32(low, rounded);
    double total = 0;
    for (int l = 0; l < V_LANES; l++) total += (double)high[l] + (double)low[l];
    return (struct members){total, members};
}

/* The largest float that is not above origin + rest. */
static inline float float_below(float origin, double rest) {
    const double sum = (double)origin + rest, added = sum - (double)origin;
    const double missing = ((double)origin - (sum - added)) + (rest - added);
    const float near = (float)sum;
    return (double)near > sum || ((double)near == sum && missing < 0) ? nextafterf(near, -INFINITY) : near;
}

/* `start` is below tau: supports only become smaller, so that it ends. Two of the same size, one of which holds the other, are the same. x - origin is exact for all that may be in one:
 * beyond 2 the origin is the maximum, where a difference of at most 1 loses nothing. */
LIGER_TEMPLATE struct threshold find_threshold(liger_dtype t, const void *x, int64_t count, float max, float start) {
    const float origin = fabsf(max) < 2.0f ? 0.0f : max;
    float above = start;
    for (int64_t before = INT64_MAX;;) {
        const struct members all = members_above(t, x, count, above, origin);
        const double tau = (all.sum - 1) / (double)all.count;
        above = float_below(origin, tau);
        if (all.count >= before)
            return (struct threshold){above, origin, (float)tau, (float)(tau - (double)(float)tau)};
        before = all.count;
    }
}
V_OUT_OF_LINE struct threshold threshold_of_list(const float *x, int64_t count, float max, float start) {
    return find_threshold(LIGER_F32, x, count, max, start);
}

#endif
