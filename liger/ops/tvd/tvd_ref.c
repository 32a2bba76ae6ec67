/* tvd_ref.c - what the total variation distance makes of an element. */
#include "liger/ops/tvd/tvd_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double
#endif

void tvd_reference(double x, double y, double *value, double *slope) {
    const REAL d = (REAL)x - (REAL)y;
    *value = fabs(d) / 2;
    *slope = d > 0 ? 0.5 : d < 0 ? -0.5 : d;
}
