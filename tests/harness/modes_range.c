/* modes_range.c - data beyond N(0, 1): every ordinary case with inputs that are huge, tiny, subnormal, or small changes of
 * a large common offset. The budgets are those of parity, taken of the values at hand; where the double result lies beyond
 * the output's format, an infinity is the only right answer. */
#include <stdio.h>
#include <string.h>

#include "tests/harness/modes.h"

static const char *const range_names[OP_RANGES] = {"huge", "tiny", "subnormal", "offset"};

static bool case_takes_part(const struct op_cases *op, const struct op_case *c, int range) {
    struct tensor_spec spec[OP_MAX_TENSORS];
    bool any = false;
    memset(spec, 0, sizeof spec);
    op->describe(c, spec);
    for (int i = 0; i < op->tensor_count; i++)
        any = any || (!spec[i].absent && spec[i].role != ROLE_OUT && spec[i].ranges >> range & 1);
    return any;
}

static bool takes_part(const struct op_cases *op, int range) {
    bool any = false;
    for (int k = 0; k < op->case_count; k++) any = any || case_takes_part(op, &op->cases[k], range);
    return any;
}

/* The second choice of weight and index dtypes changes nothing about the range of the others. */
static void range_case(const struct mode_setup *setup, const struct op_cases *op, const struct op_case *c, int range,
                       struct report *report) {
    char what[32];
    struct op_types types;
    snprintf(what, sizeof what, "%s values", range_names[range]);
    for (int choice = 0; choice < MODE_CHOICES; choice += 2) {
        if (!modes_types(op, c, choice, &types)) continue;
        struct op_run *run = op_run_new_in((enum op_range)range, setup->context, op, c, types, modes_case_seed(op, c));
        if (run == NULL || !op_run_expect(run)) report_fail(report, "%s: no memory", c->label);
        else modes_check_call(run, report, PLACE_MIDDLE, SPACING_DENSE, NULL, what);
        op_run_free(run);
    }
}

void mode_range(const struct mode_setup *setup, const struct op_cases *op, struct report *report) {
    for (int range = 0; range < OP_RANGES; range++) {
        char what[64];
        snprintf(what, sizeof what, "inputs of the range \"%s\"", range_names[range]);
        if (modes_excused(takes_part(op, range), op->no_range[range], what, report)) continue;
        for (const struct op_case *c = op->cases; c < op->cases + op->case_count; c++) {
            if (!modes_ordinary(setup, c)) continue;
            if (case_takes_part(op, c, range)) range_case(setup, op, c, range, report);
            else report_not_applicable(report, "range: the inputs that take part in it are absent");
        }
    }
}
