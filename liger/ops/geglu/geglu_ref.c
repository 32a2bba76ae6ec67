/* geglu_ref.c - what GeGLU is: double precision, one loop, rounded only where the contract rounds. */
#include "liger/ops/geglu/geglu_ref.h"

#include <math.h>

#include "tests/harness/op_cases.h"

static const double root = 0.79788456080286535588 /* √(2/π) */, cubic = 0.044715;

/* ±1 from where f32 has no number in between: an infinite factor of gelu or of its slope then gives NaN, as in f32. */
static double tanh_u(double a) {
    const double t = tanh(root * (a + cubic * a * a * a));
    return 1 - fabs(t) < 0x1p-25 ? copysign(1, t) : t;
}
static double gelu(double a) { return 0.5 * a * (1 + tanh_u(a)); }

/* a·(1 - tanh²)·a² is 0 where tanh is ±1, however large a is, and NaN at infinity. */
static double slope(double a) {
    const double t = tanh_u(a), rest = 1 - t * t;
    return 0.5 * (1 + t) + (rest == 0 && isfinite(a) ? 0 : 0.5 * a * rest * root * (1 + 3 * cubic * a * a));
}

void geglu_forward_ref(int64_t count, liger_dtype activation, const double *gate, const double *up, double *y) {
    for (int64_t i = 0; i < count; i++) y[i] = op_round(activation, gelu(gate[i])) * up[i];
}

void geglu_backward_ref(int64_t count, liger_dtype t, const double *dy, const double *gate, const double *up,
                        double *dgate, double *dup) {
    for (int64_t i = 0; i < count; i++) {
        if (dup) dup[i] = op_round(t, gelu(gate[i])) * dy[i];
        if (dgate) dgate[i] = op_round(t, dy[i] * up[i]) * slope(gate[i]);
    }
}
