/* linear_logprob_ref.c - logits = x·weightᵀ + bias, then the reference of logprob, then the products.
 *
 * Rounded where the contract rounds: logits and their gradient. REAL: linear_logprob_naive_ref.c compiles the same loops in
 * f32. */
#include "liger/ops/linear_logprob/linear_logprob_ref.h"

#include <stdlib.h>

#ifndef REAL
#define REAL double
#endif
#include "tests/harness/linear_head_ref.h"

/* x with zeros for the rows that are left out. */
static double *counted_rows(const struct linear_logprob_ref *p) {
    const int64_t count = p->rows.rows * p->hidden;
    double *x = malloc(((size_t)count + 1) * sizeof *x);
    if (x == NULL) abort();
    for (int64_t i = 0; i < count; i++)
        x[i] = (int64_t)p->rows.target[i / p->hidden] == p->rows.ignore_index ? 0 : p->x[i];
    return x;
}

static struct head_ref head_of(const struct linear_logprob_ref *p, const double *x) {
    return (struct head_ref){
        .rows = p->rows.rows,
        .hidden = p->hidden,
        .vocab = p->rows.vocab,
        .dtype = p->rows.dtype,
        .x = x,
        .weight = p->weight,
        .bias = p->bias,
        .logits = p->rows.logits,
        .dlogits = p->rows.dlogits,
    };
}

void linear_logprob_reference_forward(struct linear_logprob_ref p) {
    double *x = counted_rows(&p);
    const struct head_ref head = head_of(&p, x);
    head_ref_logits(&head);
    logprob_reference_forward(p.rows);
    free(x);
}

void linear_logprob_reference_backward(struct linear_logprob_ref p) {
    double *x = counted_rows(&p);
    const struct head_ref head = head_of(&p, x);
    head_ref_logits(&head);
    logprob_reference_backward(p.rows);
    head_ref_dx(&head, p.dx);
    head_ref_dweight(&head, p.rows.rows, LIGER_DTYPE_NONE, p.dweight);
    head_ref_dbias(&head, p.dbias);
    free(x);
}
