/* jsd_naive_ref.c - the formula of jsd_ref.c in f32, with log M as it is defined: the error that a kernel's is held to. */
#include <math.h>

#define REAL float
#define jsd_reference jsd_naive
#include "liger/ops/jsd/jsd_ref.h"

static struct jsd_above jsd_above_mixture(double beta, double x, double y) {
    const REAL b = beta, rest = 1 - b, max = x > y ? x : y;
    const REAL sum = b * exp(y - max) + rest * exp(x - max), log_m = max + log(sum);
    return (struct jsd_above){(REAL)x - log_m, (REAL)y - log_m};
}

#include "liger/ops/jsd/jsd_ref.c"
