/* modes_contract.c - the modes about what a contract states in words: errors, gradients, properties. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/harness/compare.h"
#include "tests/harness/finite_difference.h"
#include "tests/harness/modes.h"
#include "tests/harness/random.h"

static const struct op_types plain_types = {LIGER_F32, LIGER_F32, LIGER_I64};

/* ---- error ---- */

static void apply(const struct op_change *change, struct op_call *call) {
    liger_tensor *tensor = &call->t[change->tensor];
    const int at = change->at;
    const int64_t value = change->field == CHANGES_SCALAR ? 0 : (int64_t)change->value;
    switch (change->field) {
        case CHANGES_NOTHING: break;
        case CHANGES_MEMORY:
            tensor->data = at < 0 ? NULL : (char *)call->t[at].data + value * (int64_t)liger_dtype_size(tensor->dtype);
            break;
        case CHANGES_DTYPE: tensor->dtype = (int32_t)value; break;
        case CHANGES_NDIM: tensor->ndim = (int32_t)value; break;
        case CHANGES_SHAPE: tensor->shape[at] = value; break;
        case CHANGES_STRIDE: tensor->stride[at] = value; break;
        case CHANGES_TO_VECTOR: tensor->ndim = 1, tensor->shape[0] = value, tensor->stride[0] = 1; break;
        case CHANGES_SIZE: call->c.size[at] = value; break;
        case CHANGES_SCALAR: call->c.scalar[at] = change->value; break;
        case ADDS_FLAGS: call->c.flags |= (uint32_t)value; break;
        case CHANGES_WORKSPACE_BYTES: call->workspace_bytes = (size_t)value; break;
    }
}

/* What a refusal must look like; the workspace ones apply to every function that has one. */
void modes_expect_refusal(struct op_run *run, const struct op_provocation *p, struct report *report) {
    struct call_image image;
    char label[160];
    snprintf(label, sizeof label, "%s: %s", run->c.label, p->label);
    if (!call_image_make(&image, run, PLACE_MIDDLE, SPACING_DENSE, NULL)) {
        report_fail(report, "%s: %s", label, image.text);
        call_image_free(&image);
        return;
    }
    apply(&p->change, &image.call);
    if (p->spoil) p->spoil(&image.call);
    const liger_status status = call_image_invoke(&image, NULL);
    char text[512];
    snprintf(text, sizeof text, "%s", liger_last_error());
    const char *missing = NULL;
    for (int k = OP_MAX_TEXTS - 1; k >= 0; k--)
        if (p->says[k] != NULL && strstr(text, p->says[k]) == NULL) missing = p->says[k];
    const char *touched = call_image_touched(&image);
    if (status != p->status)
        report_fail(report, "%s: status is %s, expected %s (%s)", label, liger_status_name(status),
                    liger_status_name(p->status), status == LIGER_OK ? "no message" : text);
    else if (missing != NULL) report_fail(report, "%s: the message does not say \"%s\": %s", label, missing, text);
    else if (touched != NULL) report_fail(report, "%s: %s", label, touched);
    else report_pass(report);
    call_image_free(&image);
}

static void shorten_workspace(struct op_call *call) { call->workspace_bytes--; }
static void drop_workspace(struct op_call *call) { call->workspace = NULL; }
static void shift_workspace(struct op_call *call) { call->workspace = (char *)call->workspace + 4; }

static void refuse_workspaces(struct op_run *run, struct report *report) {
    struct call_image image;
    const bool made = call_image_make(&image, run, PLACE_MIDDLE, SPACING_DENSE, NULL);
    const size_t bytes = image.call.workspace_bytes;
    call_image_free(&image);
    if (made && bytes == 0) report_not_applicable(report, "error: the function needs no workspace that could be wrong");
    if (!made) report_fail(report, "%s: %s", run->c.label, image.text);
    if (!made || bytes == 0) return;
    char needed[32], given[32];
    snprintf(needed, sizeof needed, "%zu", bytes);
    snprintf(given, sizeof given, "%zu", bytes - 1);
    const struct op_provocation short_one = {"workspace one byte short",
                                             {CHANGES_NOTHING},
                                             LIGER_ERR_WORKSPACE,
                                             {"workspace", needed, given},
                                             shorten_workspace};
    const struct op_provocation absent = {
        "workspace absent", {CHANGES_NOTHING}, LIGER_ERR_WORKSPACE, {"workspace", needed}, drop_workspace};
    const struct op_provocation askew = {
        "workspace not aligned", {CHANGES_NOTHING}, LIGER_ERR_WORKSPACE, {"workspace", "256"}, shift_workspace};
    modes_expect_refusal(run, &short_one, report);
    modes_expect_refusal(run, &absent, report);
    modes_expect_refusal(run, &askew, report);
}

/* `p` NULL: the workspaces that every function with one must refuse. */
static void provoke(const struct mode_setup *setup, const struct op_cases *op, const struct op_provocation *p,
                    struct report *report) {
    struct op_run *run = op_run_new(setup->context, op, &op->cases[0], plain_types, random_seed(op->name));
    if (run == NULL) report_fail(report, "%s: no memory", op->cases[0].label);
    else if (p == NULL) refuse_workspaces(run, report);
    else modes_expect_refusal(run, p, report);
    op_run_free(run);
}

/* What the table of its door says. */
static void derive(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    const struct door_entry *entry = door_find(op->name);
    for (int k = 0; entry != NULL && entry->door != NULL && k < op->case_count; k++) {
        if (op->cases[k].large) continue;
        struct op_run *run = op_run_new(setup->context, op, &op->cases[k], plain_types, random_seed(op->name));
        if (run == NULL) report_fail(report, "%s: no memory", op->cases[k].label);
        else modes_query_without_memory(run, report);
        if (run != NULL && k == 0) modes_refuse_rules(run, entry->door, report);
        op_run_free(run);
    }
}

void mode_error(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    provoke(setup, op, NULL, report);
    derive(setup, op, report);
    for (int k = 0; k < op->provocation_count; k++) provoke(setup, op, &op->provocations[k], report);
    for (int k = 0; k < op->more_provocation_count; k++) provoke(setup, op, &op->more_provocations[k], report);
}

/* ---- gradient ---- */

static double loss_of(void *argument) {
    struct op_run *run = argument;
    return run->op->loss(&run->c, &run->types, run->t);
}

/* Which elements to move: all of a small tensor, a fixed sample of a larger one. */
enum { GRADIENT_SAMPLES = 24, GRADIENT_MAX_ELEMENTS = 40000 };

static void check_gradient(struct op_run *run, const struct op_gradient *pair, struct report *report) {
    const int64_t count = run->count[pair->input];
    const double *gradient = run->expected[pair->gradient];
    const double tolerance = 1e-7 * (compare_magnitude(count, gradient) + 1e-3);
    struct random_stream stream = random_start(random_seed(run->c.label), (uint64_t)pair->input);
    double worst = 0;
    for (int64_t s = 0; s < count && s < GRADIENT_SAMPLES; s++) {
        const int64_t at = count <= GRADIENT_SAMPLES ? s : random_below(&stream, count);
        const double slope = finite_difference(loss_of, run, &run->t[pair->input][at]);
        const double error = fabs(slope - gradient[at]) / tolerance;
        if (!(error <= 1)) {
            report_fail(report, "%s: %s[%lld] is %.12g in the reference, but the slope of the loss is %.12g",
                        run->c.label, run->spec[pair->gradient].name, (long long)at, gradient[at], slope);
            return;
        }
        worst = error > worst ? error : worst;
    }
    char where[REPORT_TEXT];
    snprintf(where, sizeof where, "%s of %s", run->spec[pair->gradient].name, run->c.label);
    report_error(report, worst, where);
    report_pass(report);
}

static void gradient_case(struct op_run *run, struct report *report) {
    int64_t elements = 0;
    for (int i = 0; i < run->op->tensor_count; i++) elements += run->count[i];
    if (elements > GRADIENT_MAX_ELEMENTS) {
        report_not_applicable(report, "grad: the case has too many elements for differences");
        return;
    }
    for (int g = 0; g < run->op->gradient_count; g++) {
        const struct op_gradient *pair = &run->op->gradients[g];
        if (run->t[pair->gradient] != NULL && run->t[pair->input] != NULL) check_gradient(run, pair, report);
        else report_not_applicable(report, "grad: the gradient or its input is absent");
    }
}

void mode_gradient(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    const struct op_types exact = {LIGER_DTYPE_NONE, LIGER_DTYPE_NONE, LIGER_I64};
    if (modes_excused(op->loss != NULL, op->no_loss, "loss", report)) return;
    for (const struct op_case *c = op->cases; c < op->cases + op->case_count; c++) {
        if (!modes_ordinary(setup, c)) continue;
        struct op_run *run = op_run_new(setup->context, op, c, exact, modes_case_seed(op, c));
        if (run == NULL || !op_run_expect(run)) report_fail(report, "%s: no memory", c->label);
        else gradient_case(run, report);
        op_run_free(run);
    }
}

/* ---- property ---- */

static const struct op_property *current_property;
static int meant_something; /* runs that the current property is about */

static void property_case(const struct mode_setup *setup, struct op_run *run, struct report *report) {
    (void)setup;
    char label[160];
    modes_label(run, label, sizeof label);
    const char *broken = current_property->check(run);
    meant_something += run->not_applicable == NULL;
    if (run->not_applicable != NULL) report_not_applicable(report, run->not_applicable);
    else if (broken == NULL) report_pass(report);
    else report_fail(report, "%s: %s: %s", label, current_property->label, broken);
}

void mode_property(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    if (op->property_count == 0) report_not_applicable(report, "property: the room names none for this function");
    for (int k = 0; k < op->property_count; k++) {
        current_property = &op->properties[k];
        meant_something = 0;
        if (current_property->of_a_cpu && liger_context_device(setup->context) != LIGER_DEVICE_CPU) {
            report_not_applicable(report, "property: it is of a CPU");
            continue;
        }
        modes_for_each_drawn(setup, op, report, modes_ordinary, property_case);
        if (meant_something == 0) report_fail(report, "%s: applies to no case at all", current_property->label);
    }
}
