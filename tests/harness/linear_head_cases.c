/* linear_head_cases.c - see linear_head_cases.h. */
#include "tests/harness/linear_head_cases.h"

#include <math.h>
#include <stdlib.h>

#include "tests/harness/float_formats.h"
#include "tests/harness/op_run.h"

void head_coarsen(double *values, int64_t count) {
    for (int64_t i = 0; values && i < count; i++) values[i] = round(values[i] * 16) / 16;
}

double *head_doubles(int64_t count) {
    double *values = calloc((size_t)count + 1, sizeof *values);
    if (values == NULL) abort();
    return values;
}

/* ---- a head ------------------------------------------------------------------------------------------------------- */

static double *tensor(double *const *t, int at) { return at == HEAD_NONE ? NULL : t[at]; }

struct head_ref head_of(const struct op_case *c, const struct op_types *types, double *const *t,
                        const struct head_tensors *at) {
    const int64_t elements = c->size[HEAD_ROWS] * c->size[HEAD_VOCAB];
    return (struct head_ref){
        .rows = c->size[HEAD_ROWS],
        .hidden = c->size[HEAD_HIDDEN],
        .vocab = c->size[HEAD_VOCAB],
        .dtype = types->t,
        .x = t[HEAD_X],
        .weight = t[HEAD_WEIGHT],
        .bias = tensor(t, at->bias),
        .logits = head_doubles(elements),
        .dlogits = head_doubles(elements),
        .chunk = c->size[HEAD_CHUNK] ? c->size[HEAD_CHUNK] : c->size[HEAD_ROWS],
        .dweight_dtype = types->t == LIGER_DTYPE_NONE ? LIGER_DTYPE_NONE : types->weight,
    };
}

void head_add_gradients(struct head_ref *head, double *const *t, const struct head_tensors *at) {
    head->dx = tensor(t, at->dx);
    head->dweight = tensor(t, at->dweight);
    head->dbias = tensor(t, at->dbias);
}

void head_release(const struct head_ref *head) {
    free(head->logits);
    free(head->dlogits);
}

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

void head_describe_operands(int64_t rows, int64_t hidden, int64_t vocab, struct tensor_spec *x,
                            struct tensor_spec *weight, struct tensor_spec *bias) {
    *x = (struct tensor_spec){.name = "x", .kind = KIND_T, .ndim = 2, .shape = {rows, hidden}, .gaps = true};
    *weight = (struct tensor_spec){.name = "weight", .kind = KIND_T, .spread = .5, .ndim = 2, .shape = {vocab, hidden}};
    *bias = (struct tensor_spec){.name = "bias", .kind = KIND_T, .ndim = 1, .shape = {vocab}};
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

/* ---- budgets ------------------------------------------------------------------------------------------------------ */

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

void head_raise(const struct head_ref *head, const double *error, double logits, const struct head_tensors *at,
                double *magnitude) {
    const struct head_budget budget = {
        .rows = head->rows,
        .hidden = head->hidden,
        .vocab = head->vocab,
        .t = head->dtype,
        .x = head->x,
        .weight = head->weight,
        .dlogits = head->dlogits,
        .error = error,
        .logits = logits,
        .rounds = head->dweight_dtype != LIGER_F32 && head->chunk < head->rows,
    };
    double no_bias = 0;
    double *dbias = at->dbias == HEAD_NONE ? &no_bias : &magnitude[at->dbias];
    head_magnitudes(&budget, &magnitude[at->dx], &magnitude[at->dweight], dbias);
}

/* ---- properties and bench ------------------------------------------------------------------------------------------ */

const char *head_any_chunk(struct op_run *run) {
    const int64_t rows = run->c.size[HEAD_ROWS], chunks[] = {1, 2, rows / 2 + 1, rows, rows + 3};
    return op_run_any_size(run, HEAD_CHUNK, chunks, OP_COUNT(chunks));
}

const char *head_in_dweight(struct op_run *run, int dweight) {
    if (run->t[dweight] == NULL || run->c.size[HEAD_ROWS] > run->c.size[HEAD_HIDDEN])
        return op_run_not_applicable(run, "logits in dweight: there is none, or it is smaller");
    return op_run_any_size(run, HEAD_CHUNK, (int64_t[]){0}, 1);
}

double head_flops(const struct op_case *c) {
    return 6.0 * (double)c->size[HEAD_ROWS] * (double)c->size[HEAD_HIDDEN] * (double)c->size[HEAD_VOCAB];
}
