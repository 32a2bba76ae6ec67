/* geglu_ref.c - what GeGLU is: double precision, one loop, rounded only where the contract rounds. */
#include "liger/ops/geglu/geglu_ref.h"

#include <math.h>

#include "tests/harness/op_cases.h"

static const double root = 0.79788456080286535588 /* √(2/π) */, cubic = 0.044715;

static double u_of(double a) { return root * (a + cubic * a * a * a); }
/* (1 - tanh|u|)/2 and (1 + tanh|u|)/2: the form that does not cancel. */
static double rest_of(double a) {
    const double rest = 1 / (1 + exp(2 * fabs(u_of(a))));
    return rest < 0x1p-126 ? 0 : rest; /* where f32 has none: an infinite factor then gives NaN, as in f32 */
}
static double other_of(double a) { return 1 / (1 + exp(-2 * fabs(u_of(a)))); }

static double gelu(double a) { return a * (a < 0 ? rest_of(a) : other_of(a)); }

/* a·(1 - tanh²)·a² is 0 where tanh is ±1, however large a is, and NaN at infinity. */
static double slope(double a) {
    const double rest = rest_of(a), half = a < 0 ? rest : other_of(a);
    if (rest == 0 && isfinite(a)) return half;
    return half + 2 * a * rest * other_of(a) * root * (1 + 3 * cubic * a * a);
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
