/* linear_cross_entropy_ref.h - a linear head and its cross entropy in double precision, for tests. */
#ifndef LIGER_OPS_LINEAR_CROSS_ENTROPY_REF_H
#define LIGER_OPS_LINEAR_CROSS_ENTROPY_REF_H

#include "liger/ops/cross_entropy/cross_entropy_ref.h"
#include "tests/harness/head_ref.h"

/* `loss` brings rows, vocab, options, target, class weights, upstream and results; its logits and dlogits are those of the head. */
struct linear_cross_entropy_ref {
    struct cross_entropy_ref loss;
    struct head_ref head; /* logits and dlogits are required */
    bool raw_gradient;
    double *counts; /* or NULL */
};

void linear_cross_entropy_reference(struct linear_cross_entropy_ref p);
/* The same loops with f32 variables: one accumulator, a rounding after each addition. */
void linear_cross_entropy_naive(struct linear_cross_entropy_ref p);

#endif
