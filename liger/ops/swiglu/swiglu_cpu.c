/* swiglu_cpu.c - what SwiGLU does to an element on the CPU; cpu/gated.h makes its kernels, once per instruction set. */
#include "liger/cpu/vec_math.h"
#include "liger/ops/swiglu/swiglu_problem.h"

LIGER_TEMPLATE void forward_element(liger_dtype t, liger_dtype ta, const struct swiglu_forward_problem *p,
                                    const v_f32 gate[2], const v_f32 up[2], v_f32 y[2]) {
    const bool scales = p->down_multiplier != 1.0f;
    v_f32 g[2];
    for (int j = 0; j < 2; j++) {
        g[j] = v_mul(gate[j], v_set(p->gate_multiplier));
        y[j] = v_sub(v_zero(), g[j]);
    }
    v_exp_each(2, y);
    for (int j = 0; j < 2; j++) {
        const v_f32 silu = v_div(g[j], v_add(v_set(1.0f), y[j]));
        y[j] = v_mul(v_round_to(ta, silu), up[j]);
        if (scales) y[j] = v_mul(v_round_to(t, y[j]), v_set(p->down_multiplier));
    }
}

LIGER_TEMPLATE void backward_element(liger_dtype t, const struct swiglu_backward_problem *p, const v_f32 dy[2],
                                     const v_f32 gate[2], const v_f32 up[2], v_f32 dgate[2], v_f32 dup[2]) {
    const v_f32 one = v_set(1.0f), multiplier = v_set(p->gate_multiplier);
    v_f32 g[2], s[2];
    (void)t;
    for (int j = 0; j < 2; j++) {
        g[j] = v_mul(gate[j], multiplier);
        s[j] = v_sub(v_zero(), g[j]);
    }
    v_exp_each(2, s);
    for (int j = 0; j < 2; j++) {
        s[j] = v_div(one, v_add(one, s[j]));
        const v_f32 silu = v_mul(g[j], s[j]), slope = v_fma(silu, v_sub(one, s[j]), s[j]);
        const v_f32 d = v_mul(dy[j], v_set(p->down_multiplier));
        dgate[j] = v_mul(v_mul(v_mul(d, up[j]), slope), multiplier);
        dup[j] = v_mul(d, silu);
    }
}

#define GATED swiglu
#include "liger/cpu/gated.h"
