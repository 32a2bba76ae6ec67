/* linear_topk_kl_ref.h - a linear head and its divergence from listed probabilities in double precision, for tests. */
#ifndef LIGER_OPS_LINEAR_TOPK_KL_REF_H
#define LIGER_OPS_LINEAR_TOPK_KL_REF_H

#include <stdbool.h>

#include "liger/core/tensor.h"

/* Contiguous arrays, NULL = absent. */
struct linear_topk_kl_ref {
    int64_t rows, hidden, vocab, k, chunk, ignore_index;
    liger_dtype dtype, dweight_dtype; /* what is rounded in between; LIGER_DTYPE_NONE: nothing */
    double logprob_unit;              /* of one rounding of a logprob */
    double temperature;
    int reduction;
    bool raw_gradient;
    const double *x, *weight, *bias, *ids, *logprobs, *labels;
    double *logits, *dlogits; /* [rows, vocab], as rounded between head and products; both required */
    double *loss, *dx, *dweight, *dbias;
};

/* What a row of the loss weighs, and whether it counts. */
double linear_topk_kl_weight(const struct linear_topk_kl_ref *p);
bool linear_topk_kl_counts(const struct linear_topk_kl_ref *p, int64_t r);
void linear_topk_kl_reference(const struct linear_topk_kl_ref *p);
/* The same loops with f32 variables. */
void linear_topk_kl_naive(const struct linear_topk_kl_ref *p);

#endif
