/* modes.c - the modes that compare values: parity, guard, stride, alias, edge, determinism. */
#include "tests/harness/modes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness/compare.h"
#include "tests/harness/device_memory.h"
#include "tests/harness/random.h"

const char *modes_label(const struct op_run *run, char *text, size_t bytes) {
    snprintf(text, bytes, "%s, %s, weight %s, index %s", run->c.label, liger_dtype_name((int)run->types.t),
             liger_dtype_name((int)run->types.weight), liger_dtype_name((int)run->types.index));
    return text;
}

bool modes_ordinary(const struct mode_setup *setup, const struct op_case *c) {
    (void)setup;
    return !c->edge && !c->large;
}

bool modes_not_edge(const struct mode_setup *setup, const struct op_case *c) {
    return !c->edge && !(c->large && setup->quick);
}

/* Large inputs take other ways through a kernel; a second dtype would show nothing new about the order of its sums. */
static bool modes_large_case(const struct mode_setup *setup, const struct op_case *c) {
    (void)setup;
    return !c->edge && c->large;
}

static bool modes_edge_case(const struct mode_setup *setup, const struct op_case *c) {
    (void)setup;
    return c->edge;
}

/* Whether the second choice of weight and index dtypes differs from the first. */
static bool second_choice(const struct op_cases *op, const struct op_case *c, liger_dtype t) {
    struct tensor_spec spec[OP_MAX_TENSORS];
    memset(spec, 0, sizeof spec);
    op->describe(c, spec);
    for (int i = 0; i < op->tensor_count; i++) {
        if (spec[i].absent) continue;
        if (spec[i].kind == KIND_INDEX || (spec[i].kind == KIND_WEIGHT && t != LIGER_F32)) return true;
    }
    return false;
}

void modes_for_each(const struct mode_setup *setup, liger_context *context, const struct op_cases *op,
                    struct report *report, bool (*wanted)(const struct mode_setup *, const struct op_case *),
                    mode_case *body) {
    const int choices = wanted == modes_large_case ? 1 : 6;
    static const liger_dtype activations[] = {LIGER_F32, LIGER_F16, LIGER_BF16};
    for (int k = 0; k < op->case_count; k++) {
        const struct op_case *c = &op->cases[k];
        if (!wanted(setup, c)) continue;
        for (int choice = 0; choice < choices; choice++) {
            const liger_dtype t = activations[choice / 2];
            const bool second = choice % 2;
            if (c->dtypes != 0 && (c->dtypes >> t & 1) == 0) continue;
            if (second && !second_choice(op, c, t)) continue;
            const struct op_types types = {t, second ? LIGER_F32 : t, second ? LIGER_I32 : LIGER_I64};
            struct op_run *run = op_run_new(context, op, c, types, random_seed(op->name) + (uint64_t)k);
            if (run == NULL || !op_run_expect(run)) report_fail(report, "%s: no memory", c->label);
            else body(setup, run, report);
            op_run_free(run);
        }
    }
}

/* ---- one call ---- */

struct invocation {
    struct call_image *image;
    liger_status status;
};

static void invoke(void *argument) {
    struct invocation *invocation = argument;
    invocation->status = call_image_invoke(invocation->image, NULL);
}

/* False, after saying why, if an output is wrong. */
static bool outputs_right(struct call_image *image, struct op_run *run, struct report *report, const char *label) {
    for (int i = 0; i < run->op->tensor_count; i++) {
        if (run->t[i] == NULL || run->spec[i].role == ROLE_IN || run->count[i] == 0) continue;
        double *got = malloc((size_t)run->count[i] * sizeof(double));
        if (got == NULL) {
            report_fail(report, "%s: no memory", label);
            return false;
        }
        call_image_read(image, i, got);
        const liger_dtype dtype = op_tensor_dtype(&run->spec[i], run->types);
        const struct comparison c =
            compare_values(&run->spec[i], dtype, run->types.t, run->count[i], got, run->expected[i]);
        free(got);
        if (!(c.worst <= 1)) {
            report_fail(report, "%s: %s[%lld] is %.9g, expected %.9g: %.3g budgets off", label, run->spec[i].name,
                        (long long)c.index, c.got, c.expected, c.worst);
            return false;
        }
        char where[REPORT_TEXT];
        snprintf(where, sizeof where, "%s of %s", run->spec[i].name, label);
        report_error(report, c.worst, where);
    }
    return true;
}

void modes_check_call(struct op_run *run, struct report *report, enum placement place, enum spacing spacing,
                      const int *same_as, const char *what) {
    char label[256];
    char case_label[160];
    snprintf(label, sizeof label, "%s%s%s", modes_label(run, case_label, sizeof case_label), *what ? ", " : "", what);
    struct call_image image;
    struct invocation invocation = {&image, LIGER_ERR_INTERNAL};
    const char *damage = NULL;
    if (!call_image_make(&image, run, place, spacing, same_as)) {
        report_fail(report, "%s: %s", label, image.text);
    } else if (place != PLACE_MIDDLE && !guard_survives(invoke, &invocation)) {
        report_fail(report, "%s: touched memory out of bounds", label);
    } else {
        if (place == PLACE_MIDDLE) invoke(&invocation);
        if (invocation.status != LIGER_OK)
            report_fail(report, "%s: %s: %s", label, liger_status_name(invocation.status), liger_last_error());
        else if ((damage = call_image_damage(&image)) != NULL) report_fail(report, "%s: %s", label, damage);
        else if (outputs_right(&image, run, report, label)) report_pass(report);
    }
    call_image_free(&image);
}

/* ---- parity, guard, stride ---- */

static void parity_case(const struct mode_setup *setup, struct op_run *run, struct report *report) {
    (void)setup;
    modes_check_call(run, report, PLACE_MIDDLE, SPACING_DENSE, NULL, "");
}

static void mode_parity(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    modes_for_each(setup, setup->context, op, report, modes_not_edge, parity_case);
}

static void guard_case(const struct mode_setup *setup, struct op_run *run, struct report *report) {
    (void)setup;
    modes_check_call(run, report, PLACE_BEFORE_FENCE, SPACING_DENSE, NULL, "ending at a fence");
    modes_check_call(run, report, PLACE_AFTER_FENCE, SPACING_DENSE, NULL, "beginning at a fence");
}

static void mode_guard(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    modes_for_each(setup, setup->single, op, report, modes_ordinary, guard_case);
}

static void stride_case(const struct mode_setup *setup, struct op_run *run, struct report *report) {
    (void)setup;
    modes_check_call(run, report, PLACE_MIDDLE, SPACING_ODD, NULL, "odd strides");
    modes_check_call(run, report, PLACE_MIDDLE, SPACING_WIDE, NULL, "wide strides");
}

static void mode_stride(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    modes_for_each(setup, setup->context, op, report, modes_ordinary, stride_case);
}

/* ---- alias ---- */

static bool can_share(const struct op_run *run, const struct op_alias *alias, const int *same_as) {
    const int out = alias->out, in = alias->in;
    if (run->t[out] == NULL || run->t[in] == NULL || same_as[out] >= 0 || same_as[in] >= 0) return false;
    for (int i = 0; i < run->op->tensor_count; i++)
        if (same_as[i] == in || same_as[i] == out) return false;
    return op_tensor_dtype(&run->spec[out], run->types) == op_tensor_dtype(&run->spec[in], run->types);
}

static void alias_case(const struct mode_setup *setup, struct op_run *run, struct report *report) {
    (void)setup;
    int same_as[OP_MAX_TENSORS];
    for (int together = 0; together < 2; together++) {
        int shared = 0;
        for (int i = 0; i < OP_MAX_TENSORS; i++) same_as[i] = -1;
        for (int k = 0; k < run->op->alias_count; k++) {
            const struct op_alias *alias = &run->op->aliases[k];
            if (!can_share(run, alias, same_as)) continue;
            same_as[alias->out] = alias->in;
            shared++;
            if (together) continue;
            char what[96];
            snprintf(what, sizeof what, "%s is %s", run->spec[alias->out].name, run->spec[alias->in].name);
            modes_check_call(run, report, PLACE_MIDDLE, SPACING_DENSE, same_as, what);
            same_as[alias->out] = -1;
        }
        if (together && shared > 1)
            modes_check_call(run, report, PLACE_MIDDLE, SPACING_DENSE, same_as, "all permitted aliases together");
    }
}

static void mode_alias(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    if (op->alias_count > 0) modes_for_each(setup, setup->context, op, report, modes_ordinary, alias_case);
}

/* ---- edge ---- */

/* A NaN or an infinity in one element of one input must come out where arithmetic says. */
static void specials_case(const struct mode_setup *setup, struct op_run *run, struct report *report) {
    (void)setup;
    static const double specials[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < run->op->tensor_count; i++) {
        if (!run->spec[i].specials || run->spec[i].role == ROLE_OUT || run->count[i] == 0) continue;
        struct random_stream stream = random_start(random_seed(run->spec[i].name), (uint64_t)run->count[i]);
        for (int s = 0; s < 3; s++) {
            const int64_t at = random_below(&stream, run->count[i]);
            const double kept = run->t[i][at];
            run->t[i][at] = specials[s];
            char what[96];
            snprintf(what, sizeof what, "%s[%lld] = %g", run->spec[i].name, (long long)at, specials[s]);
            if (op_run_expect(run)) modes_check_call(run, report, PLACE_MIDDLE, SPACING_DENSE, NULL, what);
            run->t[i][at] = kept;
        }
    }
}

static void mode_edge(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    modes_for_each(setup, setup->context, op, report, modes_edge_case, parity_case);
    modes_for_each(setup, setup->context, op, report, modes_ordinary, specials_case);
}

/* ---- determinism ---- */

/* The bits of all outputs of one call; NULL if it failed. */
static unsigned char *bits_of_call(struct op_run *run, liger_context *context, size_t *bytes) {
    struct call_image image;
    unsigned char *bits = NULL;
    run->context = context;
    *bytes = 0;
    if (call_image_make(&image, run, PLACE_MIDDLE, SPACING_DENSE, NULL) &&
        call_image_invoke(&image, NULL) == LIGER_OK && image.text[0] == 0) {
        for (int pass = 0; pass < 2; pass++) {
            size_t total = 0;
            for (int i = 0; i < run->op->tensor_count; i++)
                if (run->t[i] != NULL && run->spec[i].role != ROLE_IN)
                    total += call_image_bits(&image, i, bits ? bits + total : NULL);
            if (pass == 0) bits = malloc(total + 1);
            *bytes = total;
            if (bits == NULL) break;
        }
    }
    call_image_free(&image);
    return bits;
}

static void same_bits(struct op_run *run, struct report *report, const unsigned char *first, size_t bytes,
                      liger_context *context, const char *what) {
    char label[160];
    size_t again_bytes;
    unsigned char *again = bits_of_call(run, context, &again_bytes);
    if (again == NULL)
        report_fail(report, "%s, %s: %s", modes_label(run, label, sizeof label), what, liger_last_error());
    else if (again_bytes != bytes || memcmp(first, again, bytes) != 0)
        report_fail(report, "%s, %s: other bits than the first time", modes_label(run, label, sizeof label), what);
    else report_pass(report);
    free(again);
}

static void determinism_case(const struct mode_setup *setup, struct op_run *run, struct report *report) {
    char label[160];
    size_t bytes;
    unsigned char *first = bits_of_call(run, setup->context, &bytes);
    if (first == NULL) {
        report_fail(report, "%s: %s", modes_label(run, label, sizeof label), liger_last_error());
        return;
    }
    same_bits(run, report, first, bytes, setup->context, "again");
    for (int k = 0; k < setup->twin_count; k++)
        same_bits(run, report, first, bytes, setup->twins[k], setup->twin_names[k]);
    free(first);
}

static void mode_determinism(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    modes_for_each(setup, setup->context, op, report, modes_ordinary, determinism_case);
    if (!setup->quick) modes_for_each(setup, setup->context, op, report, modes_large_case, determinism_case);
}

const struct test_mode test_modes[] = {
    {"parity", mode_parity, false, false}, {"naive", mode_naive, true, false},
    {"grad", mode_gradient, false, true},  {"property", mode_property, false, false},
    {"guard", mode_guard, true, false},    {"stride", mode_stride, false, false},
    {"alias", mode_alias, false, false},   {"edge", mode_edge, false, false},
    {"error", mode_error, false, false},   {"determinism", mode_determinism, false, false},
};
const int test_mode_count = OP_COUNT(test_modes);
