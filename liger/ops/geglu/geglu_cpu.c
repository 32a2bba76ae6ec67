/* geglu_cpu.c - what GeGLU does to an element on the CPU; cpu/gated.h makes its kernels, once per instruction set.
 *
 * Products and sums are those of the formula, in its order: in 16 bits the activation is then torch's, bit for bit but where
 * the two tanh differ in their last bit and that decides the rounding. */
#include "liger/cpu/vec_math.h"
#include "liger/ops/geglu/geglu_problem.h"

/* √(2/π), and the coefficient of a³ */
#define ROOT 0.79788456080286535588f
#define CUBIC 0.044715f

LIGER_TEMPLATE v_f32 u_of(v_f32 a) {
    const v_f32 cube = v_mul(v_mul(a, a), a);
    return v_mul(v_set(ROOT), v_add(a, v_mul(v_set(CUBIC), cube)));
}

LIGER_TEMPLATE v_f32 gelu(v_f32 a, v_f32 tanh) { return v_mul(v_mul(v_set(0.5f), a), v_add(v_set(1.0f), tanh)); }

/* ½(1 + tanh) + ½·a·(1 - tanh²)·√(2/π)·(1 + 3·CUBIC·a²), from what tanh lacks to ±1: neither term cancels. Beyond |a| = 1e4,
 * where `rest` has long been 0, a² need not overflow. */
LIGER_TEMPLATE v_f32 slope(v_f32 a, v_f32 rest) {
    const v_f32 one = v_set(1.0f), other = v_sub(one, rest), bounded = v_min(v_abs(a), v_set(1e4f));
    const v_f32 inner = v_mul(v_set(2 * ROOT), v_fma(v_mul(v_set(3 * CUBIC), bounded), bounded, one));
    return v_fma(v_mul(v_mul(a, rest), other), inner, v_select(v_less(a, v_zero()), rest, other));
}

LIGER_TEMPLATE void forward_element(liger_dtype t, liger_dtype ta, const struct geglu_forward_problem *p,
                                    const v_f32 gate[2], const v_f32 up[2], v_f32 y[2]) {
    (void)t, (void)p;
    for (int j = 0; j < 2; j++) y[j] = v_mul(v_round_to(ta, gelu(gate[j], v_tanh(u_of(gate[j])))), up[j]);
}

LIGER_TEMPLATE void backward_element(liger_dtype t, const struct geglu_backward_problem *p, const v_f32 dy[2],
                                     const v_f32 gate[2], const v_f32 up[2], v_f32 dgate[2], v_f32 dup[2]) {
    (void)p;
    for (int j = 0; j < 2; j++) {
        v_f32 rest;
        const v_f32 tanh = v_tanh_and_rest(u_of(gate[j]), &rest);
        rest = v_select(v_less(v_abs(tanh), v_set(1.0f)), rest, v_zero()); /* of the same tanh as gelu */
        dup[j] = v_mul(v_round_to(t, gelu(gate[j], tanh)), dy[j]);
        dgate[j] = v_mul(v_round_to(t, v_mul(dy[j], up[j])), slope(gate[j], rest));
    }
}

#define GATED geglu
#include "liger/cpu/gated.h"
