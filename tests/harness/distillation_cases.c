/* distillation_cases.c - see distillation_cases.h. */
#include "tests/harness/distillation_cases.h"

#include <math.h>
#include <stdlib.h>

/* ---- what references ask -------------------------------------------------------------------------------------------- */

bool distillation_counts(const struct distillation_ref *p, int64_t r) {
    return p->labels == NULL || (int64_t)p->labels[r] != p->ignore_index;
}

double distillation_weight(const struct distillation_ref *p) {
    int64_t count = 0;
    for (int64_t r = 0; r < p->head.rows; r++) count += distillation_counts(p, r);
    return p->mean ? 1 / ((double)count * p->divisor) : 1;
}

double distillation_gradient_weight(const struct distillation_ref *p) {
    return p->raw_gradient ? 1 : distillation_weight(p);
}

/* ---- a case --------------------------------------------------------------------------------------------------------- */

struct distillation_ref distillation_of(const struct op_case *c, const struct op_types *types, double *const *t,
                                        const struct distillation_places *at) {
    return (struct distillation_ref){
        .head = head_of(c, types, t, &at->head),
        .labels = t[at->labels],
        .ignore_index = -100,
        .divisor = has(c, MEAN) ? (double)c->size[VOCAB] : 1,
        .mean = !has(c, SUM),
        .raw_gradient = has(c, RAW),
        .temperature = op_round(LIGER_F32, c->scalar[at->temperature]),
    };
}

void distillation_add_results(struct distillation_ref *of, double *const *t, const struct distillation_places *at) {
    head_add_gradients(&of->head, t, &at->head);
    of->loss = t[at->loss];
}

void distillation_ask_loss(struct distillation_ref *of, double *loss) {
    of->loss = loss;
    if (of->raw_gradient) of->mean = false;
}

/* ---- budgets and properties ----------------------------------------------------------------------------------------- */

void distillation_magnitudes(const struct distillation_ref *of, const void *room, distillation_sizes *sizes_of_row,
                             struct distillation_errors errors, const struct distillation_places *at,
                             double *magnitude) {
    const int64_t elements = of->head.rows * of->head.vocab;
    const double weight = distillation_weight(of), by = distillation_gradient_weight(of) / fabs(of->temperature);
    double *error = head_doubles(elements), loss = 0, gradient = 0;
    for (int64_t r = 0; r < of->head.rows; r++) {
        if (!distillation_counts(of, r)) continue;
        const struct row_sizes row = sizes_of_row(room, r);
        loss += row.loss * weight, gradient = fmax(gradient, row.gradient * by);
    }
    op_raise(&magnitude[at->loss], loss);
    for (int64_t i = 0; i < elements; i++) error[i] = errors.units * gradient;
    head_raise(&of->head, error, errors.logits, &at->head, magnitude);
    free(error);
}

const char *distillation_any_label(struct op_run *run, const struct distillation_places *at) {
    double *const labels = run->t[at->labels], *const loss = run->t[at->loss];
    if (!labels) return op_run_not_applicable(run, "labels of any value: the case has none");
    for (int64_t r = 0; r < run->c.size[ROWS]; r++)
        if (labels[r] != -100) labels[r] = r % 2 ? -7 : (double)(1 << 30);
    if (op_run_call(run) != LIGER_OK) return "labels that are no indices are refused";
    const double before = loss ? *loss : 0;
    for (int64_t r = 0; r < run->c.size[ROWS]; r++)
        if (labels[r] != -100) labels[r] = 1;
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    return loss && *loss != before ? "a label that is no index changes the loss" : NULL;
}
