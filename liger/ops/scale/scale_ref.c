/* scale_ref.c - what scale is: one loop. */
#include <stddef.h>
#include <stdint.h>

void scale_reference(int64_t count, const double *x, const double *scale, double *y);

void scale_reference(int64_t count, const double *x, const double *scale, double *y) {
    for (int64_t i = 0; i < count; i++) y[i] = x[i] * (scale ? *scale : 1.0);
}
