/* dyt_ref.h - what dynamic tanh is, in double. Tests only. */
#ifndef LIGER_OPS_DYT_REF_H
#define LIGER_OPS_DYT_REF_H

#include <stdint.h>

struct dyt_ref {
    int64_t rows, cols;
    const double *x, *alpha, *gamma, *beta; /* beta NULL: zeros */
};

void dyt_ref_forward(const struct dyt_ref *p, double *y);
/* Each gradient may be NULL. */
void dyt_ref_backward(const struct dyt_ref *p, const double *dy, double *dx, double *dalpha, double *dgamma,
                      double *dbeta);

/* The same loops with f32 variables: one accumulator, a rounding after each operation. */
void dyt_naive_backward(const struct dyt_ref *p, const double *dy, double *dx, double *dalpha, double *dgamma,
                        double *dbeta);

#endif
