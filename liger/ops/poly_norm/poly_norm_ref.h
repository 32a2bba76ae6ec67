/* poly_norm_ref.h - what PolyNorm is, in double. Tests only. */
#ifndef LIGER_OPS_POLY_NORM_REF_H
#define LIGER_OPS_POLY_NORM_REF_H

#include <stdint.h>

struct poly_norm_ref {
    int64_t rows, cols;
    double epsilon;
    const double *x, *weight, *bias; /* bias: forward only */
};

/* rstd [rows, 3] may be NULL. */
void poly_norm_ref_forward(const struct poly_norm_ref *p, double *y, double *rstd);
/* Each gradient may be NULL. */
void poly_norm_ref_backward(const struct poly_norm_ref *p, const double *dy, const double *rstd, double *dx,
                            double *dweight, double *dbias);

/* The same loops with f32 variables: one accumulator, a rounding after each operation. */
void poly_norm_naive_forward(const struct poly_norm_ref *p, double *y, double *rstd);
void poly_norm_naive_backward(const struct poly_norm_ref *p, const double *dy, const double *rstd, double *dx,
                              double *dweight, double *dbias);

#endif
