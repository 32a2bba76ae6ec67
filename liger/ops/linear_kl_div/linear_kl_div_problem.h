/* linear_kl_div_problem.h - what a backend sees: rows of logits and of the target, side by side.
 *
 * The slot is the step of a chunk; the products around it are those of chunk/linear_loss.h. */
#ifndef LIGER_OPS_LINEAR_KL_DIV_PROBLEM_H
#define LIGER_OPS_LINEAR_KL_DIV_PROBLEM_H

#include "liger/core/counted_rows.h"

struct linear_kl_div_problem {
    liger_dtype dtype, target_dtype;
    int64_t rows, vocab; /* both 1 or more */
    const void *logits;  /* [rows, vocab] */
    int64_t logits_stride;
    const void *target; /* [rows, vocab] */
    int64_t target_stride;
    struct counted_rows counted; /* of these rows */
    float inverse, eps;          /* inverse: 1/temperature, finite */
    bool raw_gradient;           /* the gradient is that of the rows' plain sum */
    /* Outputs; each may be NULL. */
    float *loss;   /* [rows], weighted; 0 where a row does not count */
    void *dlogits; /* as logits, of the same stride, or logits itself */
};

#endif
