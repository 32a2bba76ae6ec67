/* swiglu_ref.c - what SwiGLU is: double precision, one loop, rounded only where the contract rounds. */
#include "liger/ops/swiglu/swiglu_ref.h"

#include <math.h>

#include "tests/harness/op_cases.h"

static double sigmoid(double g) { return 1 / (1 + exp(-g)); }

void swiglu_forward_ref(int64_t count, liger_dtype t, liger_dtype activation, double gate_multiplier,
                        double down_multiplier, const double *gate, const double *up, double *y) {
    for (int64_t i = 0; i < count; i++) {
        const double g = gate_multiplier * gate[i];
        y[i] = op_round(activation, g * sigmoid(g)) * up[i];
        if (down_multiplier != 1) y[i] = op_round(t, y[i]) * down_multiplier;
    }
}

void swiglu_backward_ref(int64_t count, double gate_multiplier, double down_multiplier, const double *dy,
                         const double *gate, const double *up, double *dgate, double *dup) {
    for (int64_t i = 0; i < count; i++) {
        const double g = gate_multiplier * gate[i], s = sigmoid(g), dc = dy[i] * down_multiplier;
        if (dup) dup[i] = dc * g * s;
        if (dgate) dgate[i] = gate_multiplier * dc * up[i] * (g * s * (1 - s) + s);
    }
}
