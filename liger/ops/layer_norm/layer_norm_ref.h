/* layer_norm_ref.h - what LayerNorm is, in double. Tests only. */
#ifndef LIGER_OPS_LAYER_NORM_REF_H
#define LIGER_OPS_LAYER_NORM_REF_H

#include <stdint.h>

struct layer_norm_ref {
    int64_t rows, cols;
    double epsilon;
    const double *x, *weight, *bias; /* weight NULL: ones; bias NULL: zeros */
};

/* mean and rstd may be NULL. */
void layer_norm_ref_forward(const struct layer_norm_ref *p, double *y, double *mean, double *rstd);
/* dx, dweight and dbias may be NULL. */
void layer_norm_ref_backward(const struct layer_norm_ref *p, const double *dy, const double *mean, const double *rstd,
                             double *dx, double *dweight, double *dbias);

/* The same loops with f32 variables: one accumulator, a rounding after each operation. */
void layer_norm_naive_forward(const struct layer_norm_ref *p, double *y, double *mean, double *rstd);
void layer_norm_naive_backward(const struct layer_norm_ref *p, const double *dy, const double *mean, const double *rstd,
                               double *dx, double *dweight, double *dbias);

#endif
