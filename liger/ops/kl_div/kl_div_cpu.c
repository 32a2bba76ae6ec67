/* kl_div_cpu.c - what the Kullback-Leibler divergence makes of an element on the CPU; cpu/divergence.h makes its kernel, once
 * per instruction set. */
#include <float.h>

#include "liger/cpu/vec_math.h"
#include "liger/ops/kl_div/kl_div_problem.h"

/* factor · difference, and 0 where the factor is. */
LIGER_TEMPLATE v_f32 guarded(v_f32 factor, v_f32 difference) {
    const v_mask some = v_less(v_zero(), v_abs(factor));
    return v_select(some, v_mul(factor, difference), factor); /* NaN is neither: it stays as the factor */
}

LIGER_TEMPLATE void divergence_terms(const struct kl_div_problem *p, const v_f32 x[2], const v_f32 y[2], v_f32 value[2],
                                     v_f32 slope[2]) {
    const v_f32 eps = v_set(p->eps > FLT_MIN ? p->eps : FLT_MIN);
    v_f32 factor[2], log_of_it[2];
    for (int j = 0; j < 2; j++) factor[j] = log_of_it[j] = y[j];
    if (p->log_target) v_exp_each(2, factor);
    else
        for (int j = 0; j < 2; j++) log_of_it[j] = v_log_normal(v_max(eps, y[j]));
    for (int j = 0; j < 2; j++) value[j] = guarded(factor[j], v_sub(log_of_it[j], x[j]));
    for (int j = 0; j < 2; j++) slope[j] = v_sub(v_zero(), factor[j]);
}

#define DIVERGENCE kl_div
#include "liger/cpu/divergence.h"
