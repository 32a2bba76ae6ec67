/* linear_jsd_ref.c - logits of both heads, the divergence of each row as it is defined, then the products.
 *
 * Rounded where the contract rounds: the gradient of the logits, and dweight after each chunk but the last, whose rounding is
 * the one at the store. REAL: linear_jsd_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/linear_jsd/linear_jsd_ref.h"

#include <math.h>

#include "liger/ops/jsd/jsd_ref.h"

#ifndef REAL
#define REAL double
int64_t linear_jsd_count(const struct linear_jsd_ref *p) {
    int64_t count = 0;
    for (int64_t r = 0; r < p->rows; r++) count += p->labels == NULL || (int64_t)p->labels[r] != p->ignore_index;
    return count;
}
#endif
#include "tests/harness/linear_head_ref.h"

static REAL log_sum_exp(const double *logits, int64_t vocab, double temperature) {
    REAL max = -INFINITY, sum = 0;
    for (int64_t j = 0; j < vocab; j++) max = (REAL)fmax(max, (REAL)(logits[j] / temperature));
    for (int64_t j = 0; j < vocab; j++) sum += (REAL)exp((REAL)(logits[j] / temperature) - max);
    return max + (REAL)log(sum);
}

static REAL one_row(const struct linear_jsd_ref *p, int64_t r, REAL by) {
    const double *x = p->logits + r * p->vocab, *y = p->teacher_logits + r * p->vocab;
    double *d = p->dlogits + r * p->vocab;
    const REAL of_x = log_sum_exp(x, p->vocab, p->temperature), of_y = log_sum_exp(y, p->vocab, p->temperature);
    REAL loss = 0, sum = 0;
    for (int64_t j = 0; j < p->vocab; j++) {
        double value, slope; /* by log Q */
        const REAL a = (REAL)(x[j] / p->temperature) - of_x, b = (REAL)(y[j] / p->temperature) - of_y;
        jsd_reference(p->beta, a, b, &value, &slope);
        loss += (REAL)value;
        sum += (REAL)slope;
        d[j] = slope;
    }
    for (int64_t j = 0; j < p->vocab; j++) {
        const REAL softmax = (REAL)exp((REAL)(x[j] / p->temperature) - of_x);
        d[j] = op_round(p->dtype, ((REAL)d[j] - softmax * sum) * by / (REAL)p->temperature);
    }
    return loss;
}

void linear_jsd_reference(const struct linear_jsd_ref *p) {
    struct head_ref head = {
        .rows = p->rows,
        .hidden = p->hidden,
        .vocab = p->vocab,
        .dtype = LIGER_DTYPE_NONE, /* logits stay as they are */
        .x = p->x,
        .weight = p->weight,
        .logits = p->logits,
        .dlogits = p->dlogits,
    };
    struct head_ref teacher = head;
    teacher.hidden = p->teacher_hidden, teacher.x = p->teacher_x, teacher.weight = p->teacher_weight;
    teacher.logits = p->teacher_logits;
    const REAL count = (REAL)linear_jsd_count(p);
    REAL total = 0;
    head_ref_logits(&head);
    head_ref_logits(&teacher);
    for (int64_t r = 0; r < p->rows; r++) {
        const bool counts = p->labels == NULL || (int64_t)p->labels[r] != p->ignore_index;
        for (int64_t j = 0; !counts && j < p->vocab; j++) p->dlogits[r * p->vocab + j] = 0;
        if (counts) total += one_row(p, r, p->raw_gradient ? 1 : 1 / count) / count;
    }
    if (p->loss) *p->loss = total;
    head_ref_dx(&head, p->dx);
    head_ref_dweight(&head, p->chunk, p->dweight_dtype, p->dweight);
}
