/* rms_norm_ref.h - what RMSNorm is, in double. Tests only. */
#ifndef LIGER_OPS_RMS_NORM_REF_H
#define LIGER_OPS_RMS_NORM_REF_H

#include "tests/harness/op_cases.h"

struct rms_norm_ref {
    int64_t rows, cols;
    struct op_types types;
    int casting;
    double epsilon, offset;
    const double *x, *weight; /* weight NULL: ones */
};

void rms_norm_ref_forward(const struct rms_norm_ref *p, double *y, double *rstd); /* rstd may be NULL */
/* dsum may be NULL (zero); so may dx and dweight (not wanted). */
void rms_norm_ref_backward(const struct rms_norm_ref *p, const double *dy, const double *dsum, const double *rstd,
                           double *dx, double *dweight);

/* The same loops with f32 variables: one accumulator, a rounding after each operation. */
void rms_norm_naive_forward(const struct rms_norm_ref *p, double *y, double *rstd);
void rms_norm_naive_backward(const struct rms_norm_ref *p, const double *dy, const double *dsum, const double *rstd,
                             double *dx, double *dweight);

#endif
