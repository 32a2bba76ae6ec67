/* linear_jsd_ref.h - two linear heads and their Jensen-Shannon divergence in double precision, for tests. */
#ifndef LIGER_OPS_LINEAR_JSD_REF_H
#define LIGER_OPS_LINEAR_JSD_REF_H

#include "tests/harness/distillation_ref.h"

/* Contiguous arrays. */
struct linear_jsd_ref {
    struct distillation_ref of;
    double beta;
    int64_t teacher_hidden;
    const double *teacher_x, *teacher_weight;
    double *teacher_logits; /* [rows, vocab]; required */
};

void linear_jsd_reference(const struct linear_jsd_ref *p);
/* The same loops with f32 variables. */
void linear_jsd_naive(const struct linear_jsd_ref *p);

#endif
