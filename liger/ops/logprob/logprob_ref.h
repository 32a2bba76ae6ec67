/* logprob_ref.h - log-probabilities on a linear head in double precision, for tests. */
#ifndef LIGER_OPS_LINEAR_LOGPROB_REF_H
#define LIGER_OPS_LINEAR_LOGPROB_REF_H

#include <stdint.h>

#include "liger/core/tensor.h"

/* Contiguous arrays, NULL = absent. */
struct linear_logprob_ref {
    int64_t rows, hidden, vocab, ids, ignore_index;
    liger_dtype dtype; /* what logits and their gradient are rounded to; LIGER_DTYPE_NONE: nothing */
    double scale, softcap, temperature;
    const double *x, *weight, *bias, *target, *selected_ids;
    double *logits; /* [rows, vocab], required; those of ignored rows are left out. Given, if x is absent */
    double *log_prob, *entropy, *lse, *log_sum_sq_probs, *mean_logits, *is_top1, *selected, *normalizer;
    /* Backward, from forward's results. dlogits is required, as rounded. terms: the magnitudes that an element of it is made
     * of, may be NULL. */
    const double *of_log_prob, *of_entropy, *of_squares, *of_normalizer;
    const double *d_log_prob, *d_entropy, *d_lse, *d_log_sum_sq_probs, *d_mean_logits, *d_selected;
    double *dlogits, *terms;
    double *dx, *dweight, *dbias;
};

void linear_logprob_reference_forward(struct linear_logprob_ref p);
void linear_logprob_reference_backward(struct linear_logprob_ref p);
/* The same loops with f32 variables. */
void linear_logprob_naive_forward(struct linear_logprob_ref p);
void linear_logprob_naive_backward(struct linear_logprob_ref p);

#endif
