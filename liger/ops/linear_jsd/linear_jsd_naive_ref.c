/* linear_jsd_naive_ref.c - the loops of linear_jsd_ref.c in f32, with M as it is defined: the error that the library's is held to. */
#include <math.h>

#include "liger/ops/jsd/jsd_ref.h"

#define REAL float
#define linear_jsd_reference linear_jsd_naive
#define jsd_reference by_definition

/* The term of an element, and its derivative by log Q. */
static void by_definition(double beta, double log_q, double log_p, double *term, double *slope) {
    const REAL a = (REAL)log_q, b = (REAL)log_p, w = (REAL)beta, rest = 1 - w, q = (REAL)exp(a), p = (REAL)exp(b);
    const REAL log_m = (REAL)log(w * p + rest * q);
    REAL of_p = p == 0 ? 0 : w * p * (b - log_m), of_q = q == 0 ? 0 : rest * q * (a - log_m);
    if (beta == 0) of_p = p == 0 ? 0 : p * (b - a), of_q = 0;
    if (beta == 1) of_q = q == 0 ? 0 : q * (a - b), of_p = 0;
    *slope = beta == 0 ? -p : beta == 1 && q > 0 ? of_q + q : of_q;
    *term = of_p + of_q;
}

#include "liger/ops/linear_jsd/linear_jsd_ref.c"
