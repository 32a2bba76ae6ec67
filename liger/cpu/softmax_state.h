/* softmax_state.h - the online softmax on the CPU: the largest value so far, and Σ exp(value - max).
 *
 * An empty state is {-FLT_MAX, 0}, not -inf: values of -inf then give exp(-inf) = 0 and never inf - inf. */
#ifndef LIGER_CPU_SOFTMAX_STATE_H
#define LIGER_CPU_SOFTMAX_STATE_H

#include <float.h>
#include <math.h>

#include "liger/cpu/vec_math.h"

struct softmax_state {
    float max, sum;
};

LIGER_TEMPLATE struct softmax_state softmax_empty(void) { return (struct softmax_state){-FLT_MAX, 0.0f}; }

/* Adds `count` values, a multiple of V_LANES; their padding is -inf. NaN is no maximum, but makes the sum NaN. */
LIGER_TEMPLATE struct softmax_state softmax_push(struct softmax_state state, const float *values, int64_t count,
                                                 float max_of_values) {
    const float max = max_of_values > state.max ? max_of_values : state.max;
    v_f32 sum[2] = {v_zero(), v_zero()};
    int64_t i = 0;
    for (; i + 2 * V_LANES <= count; i += 2 * V_LANES) {
        sum[0] = v_add(sum[0], v_exp(v_sub(v_load_f32(values + i), v_set(max))));
        sum[1] = v_add(sum[1], v_exp(v_sub(v_load_f32(values + i + V_LANES), v_set(max))));
    }
    if (i < count) sum[0] = v_add(sum[0], v_exp(v_sub(v_load_f32(values + i), v_set(max))));
    return (struct softmax_state){max, state.sum * expf(state.max - max) + v_sum(v_add(sum[0], sum[1]))};
}

#endif
