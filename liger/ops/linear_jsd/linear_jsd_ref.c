/* linear_jsd_ref.c - logits of both heads, the divergence of each row as it is defined, then the products.
 *
 * Rounded where the contract rounds: the gradient of the logits, and dweight after each chunk but the last, whose rounding is
 * the one at the store. REAL: linear_jsd_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/linear_jsd/linear_jsd_ref.h"

#include <math.h>

#include "liger/ops/jsd/jsd_ref.h"

#ifndef REAL
#define REAL double
#endif
#include "tests/harness/distillation_rows.h"
#include "tests/harness/row_softmax.h"

static REAL one_row(const void *room, int64_t r, REAL by) {
    const struct linear_jsd_ref *p = room;
    const int64_t vocab = p->of.head.vocab;
    const double temperature = p->of.temperature, *x = p->of.head.logits + r * vocab;
    const double *y = p->teacher_logits + r * vocab;
    double *d = p->of.head.dlogits + r * vocab;
    const REAL of_x = row_log_sum_exp(x, vocab, temperature), of_y = row_log_sum_exp(y, vocab, temperature);
    REAL loss = 0, sum = 0;
    for (int64_t j = 0; j < vocab; j++) {
        double value, slope; /* by log Q */
        const REAL a = (REAL)(x[j] / temperature) - of_x, b = (REAL)(y[j] / temperature) - of_y;
        jsd_reference(p->beta, a, b, &value, &slope);
        loss += (REAL)value;
        sum += (REAL)slope;
        d[j] = slope;
    }
    for (int64_t j = 0; j < vocab; j++) {
        const REAL softmax = (REAL)exp((REAL)(x[j] / temperature) - of_x);
        d[j] = op_round(p->of.head.dtype, ((REAL)d[j] - softmax * sum) * by / (REAL)temperature);
    }
    return loss;
}

void linear_jsd_reference(const struct linear_jsd_ref *p) {
    struct head_ref student = p->of.head;
    student.dtype = LIGER_DTYPE_NONE; /* logits stay as they are */
    struct head_ref teacher = student;
    teacher.hidden = p->teacher_hidden, teacher.x = p->teacher_x, teacher.weight = p->teacher_weight;
    teacher.logits = p->teacher_logits;
    head_ref_logits(&student);
    head_ref_logits(&teacher);
    distillation_rows(&p->of, one_row, p);
}
