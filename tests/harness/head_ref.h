/* head_ref.h - a linear head in double precision, as references and budgets of the functions on one are told of it. The loops
 * are those of linear_head_ref.h. */
#ifndef TESTS_HARNESS_HEAD_REF_H
#define TESTS_HARNESS_HEAD_REF_H

#include <stdint.h>

#include "liger/core/tensor.h"

/* Contiguous arrays, NULL = absent. */
struct head_ref {
    int64_t rows, hidden, vocab;
    liger_dtype dtype; /* what logits are rounded to; LIGER_DTYPE_NONE: nothing */
    const double *x, *weight, *bias;
    double *logits, *dlogits; /* [rows, vocab] */
    /* The gradients. The sum of dweight is rounded to dweight_dtype after every `chunk` rows but the last, whose rounding is
     * the one at the store. */
    double *dx, *dweight, *dbias;
    int64_t chunk;
    liger_dtype dweight_dtype;
};

#endif
