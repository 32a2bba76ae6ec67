/* modes.c - the modes that compare values: parity, guard, stride, alias, edge, range, stream,
 * determinism. */
#include "tests/harness/modes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness/compare.h"
#include "tests/harness/op_door.h"
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

bool modes_types(const struct op_cases *op, const struct op_case *c, int choice, struct op_types *types) {
    static const liger_dtype activations[] = {LIGER_F32, LIGER_F16, LIGER_BF16};
    const liger_dtype t = activations[choice / 2];
    const bool second = choice % 2;
    *types = (struct op_types){t, second ? LIGER_F32 : t, second ? LIGER_I32 : LIGER_I64};
    if (c->dtypes != 0 && (c->dtypes >> t & 1) == 0) return false;
    return !second || second_choice(op, c, t);
}

uint64_t modes_case_seed(const struct op_cases *op, const struct op_case *c) {
    return random_seed(op->name) + (uint64_t)(c - op->cases);
}

static void for_each(const struct mode_setup *setup, liger_context *context, const struct op_cases *op,
                     struct report *report, bool (*wanted)(const struct mode_setup *, const struct op_case *),
                     bool expect, mode_case *body) {
    const int choices = wanted == modes_large_case ? 1 : MODE_CHOICES;
    for (const struct op_case *c = op->cases; c < op->cases + op->case_count; c++) {
        struct op_types types;
        for (int choice = 0; wanted(setup, c) && choice < choices; choice++) {
            if (!modes_types(op, c, choice, &types)) continue;
            struct op_run *run = op_run_new(context, op, c, types, modes_case_seed(op, c));
            if (run == NULL || (expect && !op_run_expect(run))) report_fail(report, "%s: no memory", c->label);
            else body(setup, run, report);
            op_run_free(run);
        }
    }
}

void modes_for_each(const struct mode_setup *setup, liger_context *context, const struct op_cases *op,
                    struct report *report, bool (*wanted)(const struct mode_setup *, const struct op_case *),
                    mode_case *body) {
    for_each(setup, context, op, report, wanted, true, body);
}

void modes_for_each_drawn(const struct mode_setup *setup, const struct op_cases *op, struct report *report,
                          bool (*wanted)(const struct mode_setup *, const struct op_case *), mode_case *body) {
    for_each(setup, setup->context, op, report, wanted, false, body);
}

bool modes_excused(bool thing, const char *reason, const char *what, struct report *report) {
    if (thing && reason != NULL) report_fail(report, "the cases have %s, and a reason why they have none", what);
    else if (!thing && reason == NULL) report_fail(report, "the cases have no %s, and no reason why not", what);
    else if (!thing) report_not_applicable(report, reason);
    return !thing;
}

/* ---- one call ---- */

struct invocation {
    struct call_image *image;
    struct device_stream *stream; /* NULL: the default one */
    bool held;
    liger_status status;
};

static void invoke(void *argument) {
    struct invocation *invocation = argument;
    if (invocation->held) invocation->status = call_image_invoke_held(invocation->image, invocation->stream);
    else invocation->status = call_image_invoke(invocation->image, device_stream_handle(invocation->stream));
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

/* Makes the invocation on an image that stands, and looks at what it did. */
static void check(struct invocation *invocation, bool fenced, struct op_run *run, struct report *report,
                  const char *label) {
    const char *damage = NULL;
    if (fenced && !guard_survives(invoke, invocation)) {
        report_fail(report, "%s: touched memory out of bounds", label);
        return;
    }
    if (!fenced) invoke(invocation);
    if (invocation->status != LIGER_OK)
        report_fail(report, "%s: %s: %s", label, liger_status_name(invocation->status),
                    invocation->image->text[0] ? invocation->image->text : liger_last_error());
    else if ((damage = call_image_damage(invocation->image)) != NULL) report_fail(report, "%s: %s", label, damage);
    else if (outputs_right(invocation->image, run, report, label)) report_pass(report);
}

static void check_image(struct invocation *invocation, struct op_run *run, struct report *report, enum placement place,
                        enum spacing spacing, const int *same_as, const char *what) {
    char label[256], case_label[160];
    snprintf(label, sizeof label, "%s%s%s", modes_label(run, case_label, sizeof case_label), *what ? ", " : "", what);
    if (!call_image_make(invocation->image, run, place, spacing, same_as))
        report_fail(report, "%s: %s", label, invocation->image->text);
    else check(invocation, place != PLACE_MIDDLE, run, report, label);
    call_image_free(invocation->image);
}

void modes_check_call(struct op_run *run, struct report *report, enum placement place, enum spacing spacing,
                      const int *same_as, const char *what) {
    struct call_image image;
    struct invocation invocation = {&image, NULL, false, LIGER_ERR_INTERNAL};
    check_image(&invocation, run, report, place, spacing, same_as, what);
}

void modes_check_on(struct device_stream *stream, bool held, struct op_run *run, struct report *report) {
    struct call_image image;
    struct invocation invocation = {&image, stream, held, LIGER_ERR_INTERNAL};
    check_image(&invocation, run, report, PLACE_MIDDLE, SPACING_DENSE, NULL,
                held ? "on a stream that is held" : "on a stream of its own");
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
    modes_check_call(run, report, PLACE_MIDDLE, SPACING_ASKEW, NULL, "each tensor aligned in its own way");
}

static void mode_stride(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    modes_for_each(setup, setup->context, op, report, modes_ordinary, stride_case);
}

/* ---- alias ---- */

static bool shares_already(const struct op_run *run, int i, const int *same_as) {
    bool shares = same_as[i] >= 0;
    for (int k = 0; k < run->op->tensor_count; k++) shares = shares || same_as[k] == i;
    return shares;
}

/* Why these two cannot be one tensor in this run, or NULL. */
static const char *kept_apart(const struct op_run *run, const struct op_alias *alias) {
    if (run->t[alias->out] == NULL || run->t[alias->in] == NULL) return "alias: one of the two tensors is absent";
    if (op_tensor_dtype(&run->spec[alias->out], run->types) != op_tensor_dtype(&run->spec[alias->in], run->types))
        return "alias: the two tensors differ in dtype";
    return NULL;
}

static void alias_case(const struct mode_setup *setup, struct op_run *run, struct report *report) {
    (void)setup;
    struct op_alias aliases[OP_MOST_ALIASES];
    const int count = op_door_aliases(run->op, aliases);
    int same_as[OP_MAX_TENSORS], shared = 0;
    for (int i = 0; i < OP_MAX_TENSORS; i++) same_as[i] = -1;
    for (int k = 0; k < count; k++) {
        const struct op_alias *alias = &aliases[k];
        const char *apart = kept_apart(run, alias);
        if (apart != NULL) {
            report_not_applicable(report, apart);
            continue;
        }
        char what[96];
        int alone[OP_MAX_TENSORS];
        snprintf(what, sizeof what, "%s is %s", run->spec[alias->out].name, run->spec[alias->in].name);
        for (int i = 0; i < OP_MAX_TENSORS; i++) alone[i] = i == alias->out ? alias->in : -1;
        modes_check_call(run, report, PLACE_MIDDLE, SPACING_DENSE, alone, what);
        if (shares_already(run, alias->out, same_as) || shares_already(run, alias->in, same_as)) continue;
        same_as[alias->out] = alias->in;
        shared++;
    }
    if (shared > 1)
        modes_check_call(run, report, PLACE_MIDDLE, SPACING_DENSE, same_as, "all permitted aliases together");
}

static void mode_alias(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    struct op_alias aliases[OP_MOST_ALIASES];
    if (!modes_excused(op_door_aliases(op, aliases) > 0, op->no_aliases, "aliases", report))
        modes_for_each(setup, setup->context, op, report, modes_ordinary, alias_case);
}

/* ---- edge ---- */

/* A NaN or an infinity in one element of one input must come out where arithmetic says. */
static void specials_case(const struct mode_setup *setup, struct op_run *run, struct report *report) {
    static const double specials[] = {NAN, INFINITY, -INFINITY};
    if (setup->quick && run->types.index == LIGER_I32) return; /* the second choice: other loads, the same arithmetic */
    bool planted = false;
    for (int i = 0; i < run->op->tensor_count; i++) {
        if (!run->spec[i].specials || run->spec[i].role == ROLE_OUT || run->count[i] == 0) continue;
        planted = true;
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
    if (!planted) report_not_applicable(report, "edge: no input of the function takes a NaN or an infinity by itself");
}

static void mode_edge(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    modes_for_each(setup, setup->context, op, report, modes_edge_case, parity_case);
    modes_for_each_drawn(setup, op, report, modes_ordinary, specials_case);
}

/* ---- determinism ---- */

unsigned char *modes_bits(struct op_run *run, liger_context *context, struct device_stream *stream, size_t *bytes) {
    struct call_image image;
    unsigned char *bits = NULL;
    run->context = context;
    *bytes = 0;
    if (call_image_make(&image, run, PLACE_MIDDLE, SPACING_DENSE, NULL) &&
        call_image_invoke(&image, device_stream_handle(stream)) == LIGER_OK && image.text[0] == 0) {
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
    unsigned char *again = modes_bits(run, context, NULL, &again_bytes);
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
    unsigned char *first = modes_bits(run, setup->context, NULL, &bytes);
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
    modes_for_each_drawn(setup, op, report, modes_ordinary, determinism_case);
    if (!setup->quick) modes_for_each_drawn(setup, op, report, modes_large_case, determinism_case);
}

/* ---- the table ---- */

#define PAGES "the pages of a GPU cannot be protected"
#define HOST_SUMS "a GPU's approximate exponential has a budget of its own"

const struct test_mode test_modes[] = {
    {"parity", mode_parity},
    {"naive", mode_naive, .not_on_gpu = "naive: " HOST_SUMS},
    {"grad", mode_gradient, .once = true},
    {"property", mode_property},
    {"guard", mode_guard, .not_on_gpu = "guard: " PAGES},
    {"stride", mode_stride},
    {"alias", mode_alias},
    {"edge", mode_edge},
    {"range", mode_range},
    {"stream", mode_stream, .not_on_cpu = "stream: the CPU has none"},
    {"error", mode_error},
    {"determinism", mode_determinism},
};
const int test_mode_count = OP_COUNT(test_modes);

void modes_run(const struct test_mode *mode, const struct mode_setup *setup, const struct op_cases *op,
               struct report *report) {
    const char *reason = device_is_host(setup->context) ? mode->not_on_cpu : mode->not_on_gpu;
    if (reason != NULL) report_not_applicable(report, reason);
    else mode->run(setup, op, report);
}
