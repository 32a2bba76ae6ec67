/* linear_topk_kl_ref.h - a linear head and its divergence from listed probabilities in double precision, for tests. */
#ifndef LIGER_OPS_LINEAR_TOPK_KL_REF_H
#define LIGER_OPS_LINEAR_TOPK_KL_REF_H

#include "tests/harness/distillation_ref.h"

struct linear_topk_kl_ref {
    struct distillation_ref of;
    int64_t k;
    double logprob_unit;          /* of one rounding of a logprob */
    const double *ids, *logprobs; /* [rows, k] */
};

void linear_topk_kl_reference(const struct linear_topk_kl_ref *p);
/* The same loops with f32 variables. */
void linear_topk_kl_naive(const struct linear_topk_kl_ref *p);

#endif
