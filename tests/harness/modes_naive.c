/* modes_naive.c - a budget says what error is allowed; this mode asks whether one would do better without any art: the
 * largest error of the library is at most twice that of a plain f32 loop, plus one ulp of the largest value.
 *
 * Over several draws of the inputs, because the error of a few short sums is luck. In f32 only: with 16-bit outputs the
 * rounding at the store hides either error. On the CPU only: a GPU's approximate exponential has a budget of its own. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/harness/compare.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/modes.h"

enum { DRAWS = 8 };

static const struct op_types f32_types = {LIGER_F32, LIGER_F32, LIGER_I64};

/* Of one output, over the draws. */
struct errors {
    const char *name; /* NULL: not compared */
    double library, naive, largest;
};

/* Scratch is left out, because nobody says what remains in it, and so is an array of one element, whose one sum may have
 * one term or cancel altogether. */
static bool compared(const struct op_run *run, int i) {
    const bool array_of_one = run->spec[i].ndim > 0 && run->count[i] == 1;
    return run->expected[i] != NULL && run->count[i] > 0 && !array_of_one && !isinf(run->spec[i].absolute) &&
           op_tensor_dtype(&run->spec[i], run->types) == LIGER_F32;
}

static void add_errors(const struct call_image *image, const struct op_run *run, int i, struct errors *errors) {
    double *got = calloc((size_t)run->count[i], sizeof *got);
    errors->name = run->spec[i].name;
    if (got != NULL) call_image_read(image, i, got);
    const double error = got ? compare_errors(run->count[i], got, run->expected[i]).worst : INFINITY;
    const double careless = compare_errors(run->count[i], run->naive[i], run->expected[i]).worst;
    errors->library = fmax(errors->library, error);
    errors->naive = fmax(errors->naive, careless);
    errors->largest = fmax(errors->largest, compare_magnitude(run->count[i], run->expected[i]));
    free(got);
}

/* NULL, or why there is nothing to compare. */
static const char *draw(const struct mode_setup *setup, const struct op_cases *op, const struct op_case *c,
                        uint64_t seed, struct errors *errors) {
    static char text[512];
    struct call_image image;
    struct op_run *run = op_run_new(setup->context, op, c, f32_types, seed);
    if (run == NULL || !op_run_expect(run) || !op_run_naive(run)) {
        op_run_free(run);
        return "no memory";
    }
    const bool made = call_image_make(&image, run, PLACE_MIDDLE, SPACING_DENSE, NULL);
    const bool called = made && call_image_invoke(&image, NULL) == LIGER_OK && image.text[0] == 0;
    if (!called) snprintf(text, sizeof text, "%s", image.text[0] ? image.text : liger_last_error());
    for (int i = 0; called && i < op->tensor_count; i++)
        if (compared(run, i)) add_errors(&image, run, i, &errors[i]);
    call_image_free(&image);
    op_run_free(run);
    return called ? NULL : text;
}

static void judge(const struct errors *errors, const char *label, struct report *report) {
    const double allowed = 2 * errors->naive + 2 * format_unit(LIGER_F32) * errors->largest;
    char where[REPORT_TEXT];
    snprintf(where, sizeof where, "%s of %s", errors->name, label);
    if (errors->library <= allowed) {
        report_error(report, errors->library > 0 ? errors->library / allowed : 0, where);
        report_pass(report);
    } else {
        report_fail(report, "%s: the error is %.3g, but that of a plain f32 loop is %.3g", where, errors->library,
                    errors->naive);
    }
}

static void naive_case(const struct mode_setup *setup, const struct op_cases *op, const struct op_case *c,
                       struct report *report) {
    struct errors errors[OP_MAX_TENSORS] = {{NULL, 0, 0, 0}};
    for (int k = 0; k < (c->large ? DRAWS / 2 : DRAWS); k++) {
        const char *wrong = draw(setup, op, c, random_seed(c->label) + (uint64_t)k, errors);
        if (wrong != NULL) {
            report_fail(report, "%s: %s", c->label, wrong);
            return;
        }
    }
    bool judged = false;
    for (int i = 0; i < op->tensor_count; i++) {
        if (errors[i].name == NULL) continue;
        judge(&errors[i], c->label, report);
        judged = true;
    }
    if (!judged) report_not_applicable(report, "naive: the case has no f32 array of more than one element to compare");
}

void mode_naive(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    if (modes_excused(op->naive != NULL, op->no_naive, "naive evaluation", report)) return;
    for (int k = 0; k < op->case_count; k++) {
        const struct op_case *c = &op->cases[k];
        if (!modes_not_edge(setup, c)) continue;
        if (c->dtypes == 0 || c->dtypes >> LIGER_F32 & 1) naive_case(setup, op, c, report);
        else report_not_applicable(report, "naive: the case is not for f32");
    }
}
