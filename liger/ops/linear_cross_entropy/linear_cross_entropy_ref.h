/* linear_cross_entropy_ref.h - a linear head and its cross entropy in double precision, for tests. */
#ifndef LIGER_OPS_LINEAR_CROSS_ENTROPY_REF_H
#define LIGER_OPS_LINEAR_CROSS_ENTROPY_REF_H

#include "liger/core/tensor.h"
#include "liger/ops/cross_entropy/cross_entropy_ref.h"

/* Contiguous arrays, NULL = absent. `loss` brings rows, vocab, options, target, class weights, upstream and results;
 * its logits and dlogits are filled in here. */
struct linear_cross_entropy_ref {
    struct cross_entropy_ref loss;
    int64_t hidden, chunk;
    liger_dtype dtype, dweight_dtype; /* what is rounded in between; LIGER_DTYPE_NONE: nothing */
    bool raw_gradient;
    const double *x, *weight, *bias;
    double *logits, *dlogits; /* [rows, vocab], as rounded between head and products; both required */
    double *dx, *dweight, *dbias, *counts;
};

void linear_cross_entropy_reference(struct linear_cross_entropy_ref p);
/* The same loops with f32 variables: one accumulator, a rounding after each addition. */
void linear_cross_entropy_naive(struct linear_cross_entropy_ref p);

#endif
