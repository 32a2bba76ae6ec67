/* linear_jsd_ref.h - two linear heads and their Jensen-Shannon divergence in double precision, for tests. */
#ifndef LIGER_OPS_LINEAR_JSD_REF_H
#define LIGER_OPS_LINEAR_JSD_REF_H

#include <stdbool.h>

#include "liger/core/tensor.h"

/* Contiguous arrays, NULL = absent. */
struct linear_jsd_ref {
    int64_t rows, hidden, teacher_hidden, vocab, chunk, ignore_index;
    liger_dtype dtype, dweight_dtype; /* what is rounded in between; LIGER_DTYPE_NONE: nothing */
    double beta, temperature;
    bool raw_gradient;
    const double *x, *weight, *teacher_x, *teacher_weight, *labels;
    double *logits, *teacher_logits, *dlogits; /* [rows, vocab]; all required */
    double *loss, *dx, *dweight;
};

int64_t linear_jsd_count(const struct linear_jsd_ref *p);
void linear_jsd_reference(const struct linear_jsd_ref *p);
/* The same loops with f32 variables. */
void linear_jsd_naive(const struct linear_jsd_ref *p);

#endif
