/* linear_head_cases.c - see linear_head_cases.h. */
#include "tests/harness/linear_head_cases.h"

#include <math.h>
#include <stdlib.h>

#include "tests/harness/float_formats.h"

void head_coarsen(double *values, int64_t count) {
    for (int64_t i = 0; values && i < count; i++) values[i] = round(values[i] * 16) / 16;
}

double *head_doubles(int64_t count) {
    double *values = calloc((size_t)count + 1, sizeof *values);
    if (values == NULL) abort();
    return values;
}

struct tensor_spec head_labels(int64_t rows, bool all_ignored, bool absent) {
    return (struct tensor_spec){.name = "labels",
                                .kind = KIND_INDEX,
                                .values = VALUES_TARGET,
                                .spread = 3,
                                .offset = -100,
                                .ignore_every = all_ignored ? 1 : 3,
                                .ndim = 1,
                                .shape = {rows},
                                .absent = absent};
}

struct tensor_spec head_chunk(const char *name, int64_t rows, int64_t cols) {
    return (struct tensor_spec){.name = name,
                                .role = ROLE_INOUT,
                                .kind = KIND_T,
                                .spread = 1000,
                                .ndim = 2,
                                .shape = {rows, cols},
                                .gaps = true,
                                .absolute = INFINITY,
                                .magnitude = 1};
}

struct tensor_spec head_divergence(int64_t inexact, bool absent) {
    return (struct tensor_spec){.name = "loss",
                                .role = ROLE_OUT,
                                .kind = KIND_F32,
                                .absent = absent,
                                .relative = 1.05,
                                .absolute = 16 + 8.0 * (double)inexact};
}

void head_describe_gradients(int64_t rows, int64_t hidden, int64_t vocab, struct tensor_spec *dx,
                             struct tensor_spec *dweight, struct tensor_spec *dbias) {
    const struct tensor_spec gradient = {.role = ROLE_OUT, .relative = 1.05, .absolute = 1, .inner = 1};
    *dx = *dweight = *dbias = gradient;
    dx->name = "dx", dx->kind = KIND_T, dx->ndim = 2, dx->shape[0] = rows, dx->shape[1] = hidden, dx->gaps = true;
    dweight->name = "dweight", dweight->kind = KIND_WEIGHT, dweight->ndim = 2;
    dweight->shape[0] = vocab, dweight->shape[1] = hidden;
    dbias->name = "dbias", dbias->kind = KIND_F32, dbias->ndim = 1, dbias->shape[0] = vocab;
}

/* One sum Σ d·f of a product. */
struct terms {
    double sum, largest, errors; /* Σ|d·f|, its largest term, Σ error·|f| */
};

static void add_term(const struct head_budget *b, struct terms *terms, int64_t at, double factor) {
    const double least = b->t == LIGER_F16 ? 0x1p-14 : 0, d = fabs(b->dlogits[at]);
    terms->sum += d * fabs(factor);
    terms->errors += b->error[at] * fabs(factor);
    terms->largest = fmax(terms->largest, fmax(d, least) * fabs(factor));
}

/* Errors of the gradient of the logits are added up by the product, which errs by k u of the magnitudes of its k terms. In
 * 16 bits an f32 error may push an element of dlogits over a tie: that is one unit of the element. It needs an element
 * within a few 2^-24 of a tie, so a few per sum are enough: 3. Both in the unit that the comparison multiplies with. */
static double allowed(const struct head_budget *b, const struct terms *s, int64_t k) {
    const double f32 = s->errors + ((double)k + b->logits) * s->sum;
    if (b->t != LIGER_F16 && b->t != LIGER_BF16) return f32;
    return 3 * s->largest + f32 * 0x1p-24 / (2 * format_unit(b->t));
}

void head_magnitudes(const struct head_budget *b, double *dx, double *dweight, double *dbias) {
    for (int64_t i = 0; i < b->rows * b->hidden; i++) {
        struct terms s = {0, 0, 0};
        for (int64_t j = 0; j < b->vocab; j++)
            add_term(b, &s, i / b->hidden * b->vocab + j, b->weight[j * b->hidden + i % b->hidden]);
        op_raise(dx, allowed(b, &s, b->vocab));
    }
    for (int64_t j = 0; j < b->vocab; j++) {
        struct terms one = {0, 0, 0};
        for (int64_t r = 0; r < b->rows; r++) add_term(b, &one, r * b->vocab + j, 1);
        op_raise(dbias, allowed(b, &one, b->rows));
        for (int64_t h = 0; h < b->hidden; h++) {
            struct terms s = {0, 0, 0};
            for (int64_t r = 0; r < b->rows; r++) add_term(b, &s, r * b->vocab + j, b->x[r * b->hidden + h]);
            if (b->rounds) s.largest = fmax(s.largest, s.sum);
            op_raise(dweight, allowed(b, &s, b->rows));
        }
    }
}
