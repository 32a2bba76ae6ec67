/* logprob_ref.h - log-probabilities of rows of logits in double precision, for tests. */
#ifndef LIGER_OPS_LOGPROB_REF_H
#define LIGER_OPS_LOGPROB_REF_H

#include <stdint.h>

#include "liger/core/tensor.h"

/* Contiguous arrays, NULL = absent. */
struct logprob_ref {
    int64_t rows, vocab, ids, ignore_index;
    liger_dtype dtype; /* what the gradient of the logits is rounded to; LIGER_DTYPE_NONE: nothing */
    double scale, softcap, temperature;
    const double *target, *selected_ids;
    double *logits; /* [rows, vocab] */
    double *log_prob, *entropy, *lse, *log_sum_sq_probs, *mean_logits, *is_top1, *selected, *normalizer;
    /* Backward, from forward's results. dlogits is required, as rounded. terms: the magnitudes that an element of it is made
     * of, may be NULL. */
    const double *of_log_prob, *of_entropy, *of_squares, *of_normalizer;
    const double *d_log_prob, *d_entropy, *d_lse, *d_log_sum_sq_probs, *d_mean_logits, *d_selected;
    double *dlogits, *terms;
};

void logprob_reference_forward(struct logprob_ref p);
void logprob_reference_backward(struct logprob_ref p);
/* The same loops with f32 variables. */
void logprob_naive_forward(struct logprob_ref p);
void logprob_naive_backward(struct logprob_ref p);

#endif
