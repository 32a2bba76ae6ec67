/* linear_logprob_ref.h - log-probabilities on a linear head in double precision, for tests. */
#ifndef LIGER_OPS_LINEAR_LOGPROB_REF_H
#define LIGER_OPS_LINEAR_LOGPROB_REF_H

#include "liger/ops/logprob/logprob_ref.h"

/* Contiguous arrays, NULL = absent. `rows` brings all that is not about the head; its logits are filled in here, those of ignored
 * rows with the bias alone, and rounded to its dtype. */
struct linear_logprob_ref {
    struct logprob_ref rows;
    int64_t hidden;
    const double *x, *weight, *bias;
    double *dx, *dweight, *dbias;
};

void linear_logprob_reference_forward(struct linear_logprob_ref p);
void linear_logprob_reference_backward(struct linear_logprob_ref p);
/* The same loops with f32 variables. */
void linear_logprob_naive_forward(struct linear_logprob_ref p);
void linear_logprob_naive_backward(struct linear_logprob_ref p);

#endif
