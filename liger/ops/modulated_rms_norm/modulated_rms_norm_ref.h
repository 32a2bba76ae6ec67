/* modulated_rms_norm_ref.h - what modulated RMSNorm is, in double. Tests only. */
#ifndef LIGER_OPS_MODULATED_RMS_NORM_REF_H
#define LIGER_OPS_MODULATED_RMS_NORM_REF_H

#include "liger/ops/rms_norm/rms_norm_ref.h"

struct modulated_ref {
    struct rms_norm_ref norm;
    int64_t group_rows;
    const double *scale, *shift; /* shift may be NULL */
};

void modulated_ref_forward(const struct modulated_ref *p, double *y, double *rstd);
/* Gradients may be NULL; `d` has room for dy. */
void modulated_ref_backward(const struct modulated_ref *p, const double *dy, const double *rstd, double *d, double *dx,
                            double *dweight, double *dscale, double *dshift);
/* In f32. */
void modulated_naive_forward(const struct modulated_ref *p, double *y, double *rstd);
void modulated_naive_backward(const struct modulated_ref *p, const double *dy, const double *rstd, double *d,
                              double *dx, double *dweight, double *dscale, double *dshift);

#endif
