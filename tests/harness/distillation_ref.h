/* distillation_ref.h - a distillation loss on a linear head in double precision: what the references of all of them are told.
 * Their loop over rows is that of distillation_rows.h. */
#ifndef TESTS_HARNESS_DISTILLATION_REF_H
#define TESTS_HARNESS_DISTILLATION_REF_H

#include <stdbool.h>

#include "tests/harness/head_ref.h"

struct distillation_ref {
    struct head_ref head; /* logits and dlogits are required */
    const double *labels; /* [rows]; NULL: every row counts */
    int64_t ignore_index;
    bool mean;      /* a row is divided by the number of those that count, */
    double divisor; /* and by this */
    bool raw_gradient;
    double temperature;
    double *loss; /* or NULL */
};

bool distillation_counts(const struct distillation_ref *p, int64_t r);
/* What a row of the loss weighs, and a row of the gradient. */
double distillation_weight(const struct distillation_ref *p);
double distillation_gradient_weight(const struct distillation_ref *p);

#endif
