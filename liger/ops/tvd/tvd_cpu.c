/* tvd_cpu.c - what the total variation distance makes of an element on the CPU; cpu/divergence.h makes its kernel, once per
 * instruction set. */
#include "liger/cpu/vec_math.h"
#include "liger/ops/tvd/tvd_problem.h"

LIGER_TEMPLATE void divergence_terms(const struct tvd_problem *p, const v_f32 x[2], const v_f32 y[2], v_f32 value[2],
                                     v_f32 slope[2]) {
    (void)p;
    for (int j = 0; j < 2; j++) {
        const v_f32 d = v_sub(x[j], y[j]), apart = v_abs(d);
        const v_f32 sign = v_select(v_less(d, v_zero()), v_set(-0.5f), v_set(0.5f));
        value[j] = v_mul(v_set(0.5f), apart);
        slope[j] = v_select(v_less(v_zero(), apart), sign, d); /* of 0 and of NaN that itself */
    }
}

#define DIVERGENCE tvd
#include "liger/cpu/divergence.h"
