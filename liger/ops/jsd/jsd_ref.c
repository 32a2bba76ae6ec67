/* jsd_ref.c - what the generalized Jensen-Shannon divergence makes of an element. */
#include "liger/ops/jsd/jsd_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double
#endif

/* factor · (a - b), and 0 where f32 has the factor as 0. */
static REAL product(REAL factor, REAL a, REAL b) {
    const REAL apart = a - b;
    return (float)factor == 0 ? 0 : factor * apart;
}

void jsd_reference(double beta, double x, double y, double *value, double *slope) {
    const REAL p = exp(y), q = exp(x), b = beta, rest = 1 - b;
    if (beta == 0) {
        *value = product(p, y, x);
        *slope = -p;
        return;
    }
    if (beta == 1) {
        const REAL of_q = product(q, x, y);
        *value = of_q;
        *slope = of_q + q;
        return;
    }
    if (isnan(x) || isnan(y)) {
        *value = *slope = NAN;
        return;
    }
    const REAL max = x > y ? x : y;
    const REAL sum = b * exp(y - max) + rest * exp(x - max), log_m = max + log(sum);
    const REAL of_p = b * product(p, y, log_m), of_q = rest * product(q, x, log_m);
    *value = of_p + of_q;
    *slope = of_q;
}
