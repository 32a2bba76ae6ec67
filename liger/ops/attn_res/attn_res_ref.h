/* attn_res_ref.h - what attn_res is, in double. Tests only. */
#ifndef LIGER_OPS_ATTN_RES_REF_H
#define LIGER_OPS_ATTN_RES_REF_H

#include "tests/harness/op_cases.h"

struct attn_res_ref {
    int64_t blocks, rows, cols;
    liger_dtype norm_dtype;
    double epsilon;
    const double *v, *query, *norm;
};

void attn_res_forward_ref(const struct attn_res_ref *p, double *h, double *alpha, double *rstd);
/* Gradients may be NULL. */
void attn_res_backward_ref(const struct attn_res_ref *p, const double *dh, const double *alpha, const double *rstd,
                           double *dv, double *dquery, double *dnorm);
/* In f32. */
void attn_res_forward_naive(const struct attn_res_ref *p, double *h, double *alpha, double *rstd);
void attn_res_backward_naive(const struct attn_res_ref *p, const double *dh, const double *alpha, const double *rstd,
                             double *dv, double *dquery, double *dnorm);

#endif
