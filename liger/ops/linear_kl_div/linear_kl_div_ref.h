/* linear_kl_div_ref.h - a linear head and its divergence from probabilities in double precision, for tests. */
#ifndef LIGER_OPS_LINEAR_KL_DIV_REF_H
#define LIGER_OPS_LINEAR_KL_DIV_REF_H

#include <stdbool.h>

#include "liger/core/tensor.h"

/* Contiguous arrays, NULL = absent. */
struct linear_kl_div_ref {
    int64_t rows, hidden, vocab, chunk, ignore_index;
    liger_dtype dtype, dweight_dtype; /* what is rounded in between; LIGER_DTYPE_NONE: nothing */
    double temperature, eps;
    int reduction;
    bool raw_gradient;
    const double *x, *weight, *target, *labels;
    double *logits, *dlogits; /* [rows, vocab], as rounded between head and products; both required */
    double *loss, *dx, *dweight;
};

/* What a row of the loss weighs. */
double linear_kl_div_weight(const struct linear_kl_div_ref *p);
void linear_kl_div_reference(const struct linear_kl_div_ref *p);
/* The same loops with f32 variables. */
void linear_kl_div_naive(const struct linear_kl_div_ref *p);

#endif
