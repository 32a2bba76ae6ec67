/* finite_difference.c - see finite_difference.h. */
#include "tests/harness/finite_difference.h"

#include <math.h>

static double central(double (*f)(void *), void *argument, double *x, double step) {
    const double middle = *x;
    volatile double high = middle + step, low = middle - step; /* the step that was really made, after rounding */
    *x = high;
    const double above = f(argument);
    *x = low;
    const double below = f(argument);
    *x = middle;
    return (above - below) / (high - low);
}

double finite_difference(double (*f)(void *argument), void *argument, double *x) {
    const double step = 1e-3 * (fabs(*x) > 1 ? fabs(*x) : 1);
    return (4 * central(f, argument, x, step / 2) - central(f, argument, x, step)) / 3;
}
