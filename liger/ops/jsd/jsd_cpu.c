/* jsd_cpu.c - the generalized Jensen-Shannon divergence on the CPU: the elements of cpu/jensen_shannon.h in the kernel of
 * cpu/divergence.h, made once per instruction set. */
#include "liger/cpu/jensen_shannon.h"
#include "liger/ops/jsd/jsd_problem.h"

LIGER_TEMPLATE void divergence_terms(const struct jsd_problem *p, const v_f32 x[2], const v_f32 y[2], v_f32 value[2],
                                     v_f32 slope[2]) {
    struct js_elements of;
    js_elements_of(2, p->mixture.mode, p->mixture, x, y, &of);
    for (int j = 0; j < 2; j++) value[j] = of.value[j], slope[j] = of.slope[j];
}

#define DIVERGENCE jsd
#include "liger/cpu/divergence.h"
