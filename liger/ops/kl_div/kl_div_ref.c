/* kl_div_ref.c - what the Kullback-Leibler divergence makes of an element. */
#include "liger/ops/kl_div/kl_div_ref.h"

#include <float.h>
#include <math.h>

#ifndef REAL
#define REAL double
#endif

void kl_div_reference(bool log_target, double eps, double x, double y, double *value, double *slope) {
    const REAL least = eps > (double)FLT_MIN ? eps : (double)FLT_MIN;
    const REAL factor = log_target ? exp(y) : y;
    const REAL log_factor = log_target ? y : log(y > least || isnan(y) ? y : least);
    const REAL apart = log_factor - (REAL)x;
    const REAL product = factor * apart;
    *value = (float)factor == 0 ? 0 : product; /* what f32 has as 0 */
    *slope = -factor;
}
