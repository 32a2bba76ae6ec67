/* linear_jsd_problem.h - what a backend sees: rows of both models' logits, side by side.
 *
 * The slot makes the loss of rows and the gradient of the student's logits; the products around it are those of
 * chunk/linear_loss.h. */
#ifndef LIGER_OPS_LINEAR_JSD_PROBLEM_H
#define LIGER_OPS_LINEAR_JSD_PROBLEM_H

#include "liger/core/counted_rows.h"
#include "liger/core/mixture.h"

struct linear_jsd_problem {
    liger_dtype dtype;   /* of the gradient */
    int64_t rows, vocab; /* both 1 or more */
    /* [rows, vocab], which are lost. */
    float *student, *teacher;
    int64_t student_stride, teacher_stride;
    struct counted_rows counted; /* of these rows */
    struct mixture mixture;
    float inverse;     /* 1/temperature, finite */
    bool raw_gradient; /* the gradient is that of the rows' plain sum */
    /* Outputs; each may be NULL. */
    float *loss;   /* [rows], weighted; 0 where a row does not count */
    void *dlogits; /* [rows, vocab]; of f32 it may be student itself */
    int64_t dlogits_stride;
};

#endif
