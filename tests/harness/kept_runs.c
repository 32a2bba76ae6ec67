/* kept_runs.c - see kept_runs.h. */
#include "tests/harness/kept_runs.h"

#include <stdlib.h>
#include <string.h>

struct kept_run {
    struct kept_run *next;
    struct run_kind kind;
    bool has_inputs, has[KEPT_OUTPUTS];
    double *inputs[OP_MAX_TENSORS], *outputs[KEPT_OUTPUTS][OP_MAX_TENSORS];
    struct tensor_spec spec[KEPT_OUTPUTS][OP_MAX_TENSORS]; /* a reference may tell magnitudes */
};

/* By seed, of which every function, case and draw has another. */
enum { LISTS = 4096 };
static struct kept_run *runs[LISTS];
static size_t room;

void kept_runs_begin(size_t bytes) { room = bytes; }

static void end_list(struct kept_run *run) {
    while (run != NULL) {
        struct kept_run *next = run->next;
        for (int i = 0; i < OP_MAX_TENSORS; i++) {
            free(run->inputs[i]);
            for (int which = 0; which < KEPT_OUTPUTS; which++) free(run->outputs[which][i]);
        }
        free(run);
        run = next;
    }
}

void kept_runs_end(void) {
    room = 0;
    for (int k = 0; k < LISTS; k++) {
        end_list(runs[k]);
        runs[k] = NULL;
    }
}

static bool same_case(const struct op_case *a, const struct op_case *b) {
    return memcmp(a->size, b->size, sizeof a->size) == 0 && memcmp(a->scalar, b->scalar, sizeof a->scalar) == 0 &&
           a->flags == b->flags && a->label == b->label;
}

static bool same_kind(const struct run_kind *a, const struct run_kind *b) {
    return a->op == b->op && same_case(&a->c, &b->c) && a->types.t == b->types.t &&
           a->types.weight == b->types.weight && a->types.index == b->types.index && a->range == b->range &&
           a->seed == b->seed;
}

struct kept_run *kept_run_find(const struct run_kind *kind) {
    struct kept_run **const list = &runs[kind->seed % LISTS], *run = *list;
    while (run != NULL && !same_kind(&run->kind, kind)) run = run->next;
    if (run != NULL || room == 0 || (run = calloc(1, sizeof *run)) == NULL) return run;
    run->kind = *kind;
    run->next = *list;
    return *list = run;
}

static size_t bytes_of(const struct op_run *run, int i) { return (size_t)run->count[i] * sizeof(double); }
static bool is_input(const struct op_run *run, int i) {
    return run->t[i] != NULL && run->spec[i].role != ROLE_OUT && run->count[i] > 0;
}
static bool is_output(const struct op_run *run, int i, double *const *outputs) {
    return outputs[i] != NULL && run->count[i] > 0;
}

/* A sixteenth of the room at most for one run, so that a few large cases leave some for all the others. */
static bool takes(size_t bytes, size_t *left) {
    if (bytes > *left / 16) return false;
    *left -= bytes;
    return true;
}

static double *copy_of(const double *values, size_t bytes) {
    double *copy = malloc(bytes);
    if (copy != NULL) memcpy(copy, values, bytes);
    return copy;
}

bool kept_run_inputs(struct op_run *run) {
    if (run->kept == NULL || !run->kept->has_inputs) return false;
    for (int i = 0; i < run->op->tensor_count; i++)
        if (is_input(run, i)) memcpy(run->t[i], run->kept->inputs[i], bytes_of(run, i));
    return true;
}

void kept_run_keep_inputs(const struct op_run *run) {
    size_t bytes = 0;
    for (int i = 0; i < run->op->tensor_count; i++) bytes += is_input(run, i) ? bytes_of(run, i) : 0;
    if (run->kept == NULL || !takes(bytes, &room)) return;
    run->kept->has_inputs = true;
    for (int i = 0; i < run->op->tensor_count; i++)
        if (is_input(run, i) && (run->kept->inputs[i] = copy_of(run->t[i], bytes_of(run, i))) == NULL)
            run->kept->has_inputs = false;
}

/* Bit by bit, a zero of the other sign is another input; and a property may have changed an option. */
static bool inputs_unchanged(const struct op_run *run) {
    bool same = run->kept != NULL && run->kept->has_inputs && same_case(&run->c, &run->kept->kind.c);
    for (int i = 0; same && i < run->op->tensor_count; i++)
        same = is_input(run, i) == (run->kept->inputs[i] != NULL) &&
               (!is_input(run, i) || memcmp(run->t[i], run->kept->inputs[i], bytes_of(run, i)) == 0);
    return same;
}

bool kept_run_outputs(struct op_run *run, enum kept_outputs which, double **outputs) {
    if (run->kept == NULL || !run->kept->has[which] || !inputs_unchanged(run)) return false;
    memcpy(run->spec, run->kept->spec[which], sizeof run->spec);
    for (int i = 0; i < run->op->tensor_count; i++)
        if (is_output(run, i, outputs)) memcpy(outputs[i], run->kept->outputs[which][i], bytes_of(run, i));
    return true;
}

void kept_run_keep_outputs(const struct op_run *run, enum kept_outputs which, double *const *outputs) {
    size_t bytes = 0;
    for (int i = 0; i < run->op->tensor_count; i++) bytes += is_output(run, i, outputs) ? bytes_of(run, i) : 0;
    if (!inputs_unchanged(run) || run->kept->has[which] || !takes(bytes, &room)) return;
    memcpy(run->kept->spec[which], run->spec, sizeof run->spec);
    run->kept->has[which] = true;
    for (int i = 0; i < run->op->tensor_count; i++)
        if (is_output(run, i, outputs) &&
            (run->kept->outputs[which][i] = copy_of(outputs[i], bytes_of(run, i))) == NULL)
            run->kept->has[which] = false;
}
