/* linear_ref.h - the double-precision reference of linear, and the same loops in f32, for its cases. Test code. */
#ifndef LIGER_OPS_LINEAR_REF_H
#define LIGER_OPS_LINEAR_REF_H

#include <stdbool.h>
#include <stdint.h>

struct linear_ref {
    int64_t rows, hidden, vocab;
    bool accumulate;
    const double *x, *weight, *bias; /* bias may be NULL */
    const double *dy;
    double *y, *dx, *dweight, *dbias; /* gradients may be NULL */
};

void linear_forward_ref(const struct linear_ref *p);
void linear_forward_naive(const struct linear_ref *p);
void linear_backward_ref(const struct linear_ref *p);
void linear_backward_naive(const struct linear_ref *p);

#endif
