/* group_norm_ref.h - what GroupNorm is, in double. Tests only. */
#ifndef LIGER_OPS_GROUP_NORM_REF_H
#define LIGER_OPS_GROUP_NORM_REF_H

#include <stdint.h>

struct group_norm_ref {
    int64_t batch, channels, spatial, groups;
    double epsilon;
    const double *x, *weight, *bias; /* bias: forward only */
};

/* statistics may be NULL. */
void group_norm_ref_forward(const struct group_norm_ref *p, double *y, double *statistics);
/* Each gradient may be NULL. */
void group_norm_ref_backward(const struct group_norm_ref *p, const double *dy, const double *statistics, double *dx,
                             double *dweight, double *dbias);

/* The same loops with f32 variables: one accumulator, a rounding after each operation. */
void group_norm_naive_forward(const struct group_norm_ref *p, double *y, double *statistics);
void group_norm_naive_backward(const struct group_norm_ref *p, const double *dy, const double *statistics, double *dx,
                               double *dweight, double *dbias);

#endif
