/* relu_squared_ref.c - what the operator is: double precision, one loop, never optimised. A NaN stays one. */
#include "liger/ops/relu_squared/relu_squared_ref.h"

static double relu(double x) { return x < 0 ? 0 : x; }

void relu_squared_forward_ref(int64_t count, const double *x, double *y) {
    for (int64_t i = 0; i < count; i++) y[i] = relu(x[i]) * relu(x[i]);
}

void relu_squared_backward_ref(int64_t count, const double *dy, const double *x, double *dx) {
    for (int64_t i = 0; i < count; i++) dx[i] = 2 * relu(x[i]) * dy[i];
}
