/* op_run.c - see op_run.h. */
#include "tests/harness/op_run.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness/call_image.h"
#include "tests/harness/compare.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/kept_runs.h"
#include "tests/harness/random.h"

void op_run_draw(const struct tensor_spec *spec, int64_t count, double *values, struct random_stream stream) {
    const double spread = spec->spread == 0 ? 1 : spec->spread;
    for (int64_t i = 0; i < count; i++) {
        switch (spec->values) {
            case VALUES_NORMAL: values[i] = spec->offset + spread * random_normal(&stream); break;
            case VALUES_POSITIVE: values[i] = 0.5 + random_uniform(&stream); break;
            case VALUES_ZERO: values[i] = 0; break;
            case VALUES_INTEGER: values[i] = spec->offset + (double)random_below(&stream, (int64_t)spread); break;
            case VALUES_TARGET:
                values[i] = (double)random_below(&stream, (int64_t)spec->spread);
                if (spec->ignore_every > 0 && i % spec->ignore_every == spec->ignore_every - 1)
                    values[i] = spec->offset;
                break;
        }
    }
}

/* The power of two that takes a draw of about 1 to a range of `dtype`. */
static double factor_of(const struct tensor_spec *spec, liger_dtype dtype, enum op_range range) {
    const double high = exp2(floor(log2(format_largest(dtype))) - 1), low = format_normal(dtype) * 64;
    switch (range) {
        case RANGE_HUGE: return spec->huge > 0 ? fmin(spec->huge, high) : high;
        case RANGE_TINY: return spec->tiny > 0 ? fmax(spec->tiny, low) : low;
        case RANGE_SUBNORMAL: return format_normal(dtype) / 16;
        default: return 1;
    }
}

/* Moves the draw of one input to a range. A finite draw stays finite. */
static void move_to(enum op_range range, const struct tensor_spec *spec, liger_dtype dtype, int64_t count,
                    double *values) {
    if (range == RANGE_USUAL || (spec->ranges >> range & 1) == 0) return;
    const double factor = factor_of(spec, dtype, range), largest = format_largest(dtype);
    for (int64_t i = 0; i < count; i++) {
        const double value = range == RANGE_OFFSET ? values[i] + 1024 : values[i] * factor;
        values[i] = fmax(fmin(value, largest), -largest);
    }
}

/* The budgets of a range follow the values at hand: a magnitude that a room states is one of the usual draw. */
static void budgets_of(enum op_range range, struct tensor_spec *spec) {
    if (range == RANGE_USUAL) spec->steps = 0;
    else if (!isinf(spec->absolute)) spec->magnitude = 0;
}

/* In mode grad nothing is rounded. */
static liger_dtype dtype_of(const struct op_run *run, int i) {
    return run->types.t == LIGER_DTYPE_NONE ? LIGER_DTYPE_NONE : op_tensor_dtype(&run->spec[i], run->types);
}

static void round_inputs(struct op_run *run) {
    for (int i = 0; i < run->op->tensor_count; i++)
        if (run->t[i] != NULL && run->spec[i].role != ROLE_OUT)
            format_round(dtype_of(run, i), run->t[i], run->count[i]);
}

/* Beyond so many, values are drawn again from the first: a prime, so that no shape and no power of two has this period. */
enum { PERIOD = 131071 };

static void draw_input(struct op_run *run, int i, enum op_range range, uint64_t seed) {
    const struct tensor_spec *spec = &run->spec[i];
    const int64_t count = run->count[i];
    const int64_t drawn = count > PERIOD && spec->values != VALUES_TARGET ? PERIOD : count;
    op_run_draw(spec, drawn, run->t[i], random_start(seed, (uint64_t)i));
    move_to(range, spec, op_tensor_dtype(spec, run->types), drawn, run->t[i]);
    format_round(dtype_of(run, i), run->t[i], drawn);
    for (int64_t k = drawn; k < count; k += drawn)
        memcpy(run->t[i] + k, run->t[i], (size_t)(count - k < drawn ? count - k : drawn) * sizeof(double));
}

struct op_run *op_run_new(liger_context *context, const struct op_cases *op, const struct op_case *c,
                          struct op_types types, uint64_t seed) {
    return op_run_new_in(RANGE_USUAL, context, op, c, types, seed);
}

static bool give_memory(struct op_run *run, enum op_range range) {
    run->op->describe(&run->c, run->spec);
    for (int i = 0; i < run->op->tensor_count; i++) {
        budgets_of(range, &run->spec[i]);
        if (run->spec[i].absent) continue;
        run->count[i] = op_tensor_count(&run->spec[i]);
        run->t[i] = calloc((size_t)run->count[i] + 1, sizeof(double));
        if (run->t[i] == NULL) return false;
    }
    return true;
}

static void draw_inputs(struct op_run *run, enum op_range range, uint64_t seed) {
    for (int i = 0; i < run->op->tensor_count; i++)
        if (run->t[i] != NULL && run->spec[i].role != ROLE_OUT) draw_input(run, i, range, seed);
    if (run->op->prepare == NULL) return;
    run->op->prepare(&run->c, &run->types, run->t);
    round_inputs(run);
}

struct op_run *op_run_new_in(enum op_range range, liger_context *context, const struct op_cases *op,
                             const struct op_case *c, struct op_types types, uint64_t seed) {
    const struct run_kind kind = {op, *c, types, range, seed};
    struct op_run *run = calloc(1, sizeof *run);
    if (run == NULL) return NULL;
    run->context = context;
    run->op = op;
    run->c = *c;
    run->types = types;
    run->kept = kept_run_find(&kind);
    if (!give_memory(run, range)) {
        op_run_free(run);
        return NULL;
    }
    if (kept_run_inputs(run)) return run;
    draw_inputs(run, range, seed);
    kept_run_keep_inputs(run);
    return run;
}

void op_run_free(struct op_run *run) {
    if (run == NULL) return;
    for (int i = 0; i < OP_MAX_TENSORS; i++) {
        free(run->t[i]);
        free(run->expected[i]);
        free(run->naive[i]);
    }
    free(run);
}

liger_status op_run_call(struct op_run *run) {
    struct call_image image;
    round_inputs(run);
    liger_status status = LIGER_ERR_INTERNAL;
    if (call_image_make(&image, run, PLACE_MIDDLE, SPACING_DENSE, NULL)) {
        status = call_image_invoke(&image, NULL);
        for (int i = 0; i < run->op->tensor_count; i++)
            if (run->t[i] != NULL && run->spec[i].role != ROLE_IN) call_image_read(&image, i, run->t[i]);
    }
    call_image_free(&image);
    return status;
}

/* The tensor array with outputs of its own, which begin as what they are in t. */
static bool with_outputs(const struct op_run *run, double **outputs, double **t) {
    for (int i = 0; i < run->op->tensor_count; i++) {
        t[i] = run->t[i];
        if (run->t[i] == NULL || run->spec[i].role == ROLE_IN) continue;
        if (outputs[i] == NULL) outputs[i] = malloc(((size_t)run->count[i] + 1) * sizeof(double));
        if (outputs[i] == NULL) return false;
        memcpy(outputs[i], run->t[i], (size_t)run->count[i] * sizeof(double));
        t[i] = outputs[i];
    }
    return true;
}

bool op_run_expect(struct op_run *run) {
    double *t[OP_MAX_TENSORS], magnitude[OP_MAX_TENSORS] = {0};
    if (!with_outputs(run, run->expected, t)) return false;
    if (kept_run_outputs(run, KEPT_EXPECTED, run->expected)) return true;
    run->op->reference(&run->c, &run->types, t);
    if (run->op->magnitudes != NULL) run->op->magnitudes(&run->c, &run->types, t, magnitude);
    for (int i = 0; i < run->op->tensor_count; i++)
        if (magnitude[i] > 0) run->spec[i].magnitude = magnitude[i];
    kept_run_keep_outputs(run, KEPT_EXPECTED, run->expected);
    return true;
}

bool op_run_naive(struct op_run *run) {
    double *t[OP_MAX_TENSORS];
    if (!with_outputs(run, run->naive, t)) return false;
    if (kept_run_outputs(run, KEPT_NAIVE, run->naive)) return true;
    run->op->naive(&run->c, &run->types, t);
    kept_run_keep_outputs(run, KEPT_NAIVE, run->naive);
    return true;
}

static const char *wrong_output(struct op_run *run, const struct op_run *other, int64_t value) {
    for (int i = 0; i < other->op->tensor_count; i++) {
        if (other->t[i] == NULL || other->spec[i].role == ROLE_IN) continue;
        const struct comparison c = compare_values(&other->spec[i], op_tensor_dtype(&other->spec[i], other->types),
                                                   other->types.t, other->count[i], other->t[i], other->expected[i]);
        if (!(c.worst <= 1))
            return op_run_text(run, "with %lld %s[%lld] is %.9g, expected %.9g", (long long)value, other->spec[i].name,
                               (long long)c.index, c.got, c.expected);
    }
    return NULL;
}

const char *op_run_any_size(struct op_run *run, int index, const int64_t *values, int count) {
    const char *wrong = NULL;
    for (int k = 0; k < count && wrong == NULL; k++) {
        struct op_case c = run->c;
        c.size[index] = values[k];
        struct op_run *other = op_run_new(run->context, run->op, &c, run->types, 5);
        if (other == NULL || !op_run_expect(other)) wrong = "no memory";
        else if (op_run_call(other) != LIGER_OK)
            wrong = op_run_text(run, "with %lld: %s", (long long)values[k], liger_last_error());
        else wrong = wrong_output(run, other, values[k]);
        op_run_free(other);
    }
    return wrong;
}

const char *op_run_not_applicable(struct op_run *run, const char *reason) {
    run->not_applicable = reason;
    return NULL;
}

const char *op_run_text(struct op_run *run, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(run->text, sizeof run->text, format, arguments);
    va_end(arguments);
    return run->text;
}
