/* linear_kl_div_ref.h - a linear head and its divergence from probabilities in double precision, for tests. */
#ifndef LIGER_OPS_LINEAR_KL_DIV_REF_H
#define LIGER_OPS_LINEAR_KL_DIV_REF_H

#include "tests/harness/distillation_ref.h"

struct linear_kl_div_ref {
    struct distillation_ref of;
    double eps;
    const double *target; /* [rows, vocab] */
};

void linear_kl_div_reference(const struct linear_kl_div_ref *p);
/* The same loops with f32 variables. */
void linear_kl_div_naive(const struct linear_kl_div_ref *p);

#endif
