/* distillation_rows.h - the loop over rows that references of distillation losses on a linear head share. REAL: the type of sums
 * and products, double or float. */
#ifndef TESTS_HARNESS_DISTILLATION_ROWS_H
#define TESTS_HARNESS_DISTILLATION_ROWS_H

#include "tests/harness/distillation_ref.h"
#include "tests/harness/linear_head_ref.h"

/* The loss of a row that counts; its gradient, times `by`, goes to dlogits. */
typedef REAL distillation_row(const void *room, int64_t r, REAL by);

/* Loss and gradients of logits that are there. `room`: what the room's formula is given. */
static void distillation_rows(const struct distillation_ref *p, distillation_row *one_row, const void *room) {
    const REAL weight = (REAL)distillation_weight(p), by = (REAL)distillation_gradient_weight(p);
    const int64_t vocab = p->head.vocab;
    REAL total = 0;
    for (int64_t r = 0; r < p->head.rows; r++) {
        const bool counts = distillation_counts(p, r);
        for (int64_t j = 0; !counts && j < vocab; j++) p->head.dlogits[r * vocab + j] = 0;
        if (counts) total += one_row(room, r, by) * weight;
    }
    if (p->loss) *p->loss = total;
    head_ref_gradients(&p->head);
}

#endif
