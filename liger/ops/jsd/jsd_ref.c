/* jsd_ref.c - what the generalized Jensen-Shannon divergence makes of an element. */
#include "liger/ops/jsd/jsd_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double

/* Let A have the smaller weight s, B the other. Of d = log A - log B: what B and A are above M, whose digits no s is too small for. */
static double larger_above(double s, double d) {
    return d < 50 ? -log1p(s * expm1(d)) : -d - log(s + (1 - s) * exp(-d));
}
static double smaller_above(double s, double d) { return d < 1 ? d + larger_above(s, d) : -log(s + (1 - s) * exp(-d)); }

static struct jsd_above jsd_above_mixture(double beta, double x, double y) {
    const double rest = 1 - beta;
    if (beta < 0.5) return (struct jsd_above){larger_above(beta, y - x), smaller_above(beta, y - x)};
    return (struct jsd_above){smaller_above(rest, x - y), larger_above(rest, x - y)};
}
#endif

/* factor · term, and 0 where f32 has the factor as 0. */
static REAL product(REAL factor, REAL term) { return (float)factor == 0 ? 0 : factor * term; }

void jsd_reference(double beta, double x, double y, double *value, double *slope) {
    const REAL p = exp(y), q = exp(x), rest = 1 - beta;
    if (beta == 0) {
        *value = product(p, (REAL)y - (REAL)x);
        *slope = -p;
        return;
    }
    if (beta == 1) {
        const REAL of_q = product(q, (REAL)x - (REAL)y);
        *value = of_q;
        *slope = of_q + q;
        return;
    }
    if (isnan(x) || isnan(y)) {
        *value = *slope = NAN;
        return;
    }
    const struct jsd_above above = jsd_above_mixture(beta, x, y);
    const REAL of_p = (REAL)beta * product(p, above.p), of_q = rest * product(q, above.q);
    *value = of_p + of_q;
    *slope = of_q;
}
