/* kept_runs.h - inputs that were drawn and outputs that were expected, for the next run of the same kind: modes and
 * instruction sets ask for the same again and again, and a reference costs far more than the call that it judges. */
#ifndef TESTS_HARNESS_KEPT_RUNS_H
#define TESTS_HARNESS_KEPT_RUNS_H

#include "tests/harness/op_run.h"

/* What a run's inputs follow from. */
struct run_kind {
    const struct op_cases *op;
    struct op_case c;
    struct op_types types;
    enum op_range range;
    uint64_t seed;
};

enum kept_outputs { KEPT_EXPECTED, KEPT_NAIVE, KEPT_OUTPUTS };

/* So many bytes are kept from now on; at first it is none. What does not fit is made anew each time. */
void kept_runs_begin(size_t bytes);
void kept_runs_end(void);

/* The place of runs of a kind; NULL if nothing is kept. Of its inputs nothing may be known yet. */
struct kept_run *kept_run_find(const struct run_kind *kind);

/* Inputs into run->t, or false; and the other way round, if there is room. */
bool kept_run_inputs(struct op_run *run);
void kept_run_keep_inputs(const struct op_run *run);

/* Outputs and specs of a run whose inputs are still those that are kept, or false: a mode may have changed them. */
bool kept_run_outputs(struct op_run *run, enum kept_outputs which, double **outputs);
void kept_run_keep_outputs(const struct op_run *run, enum kept_outputs which, double *const *outputs);

#endif
