/* op_run.h - one function, one case, one choice of dtypes: values in double on this side, a real call on the other.
 *
 * For properties: t[i] are contiguous doubles. Change inputs, call, read outputs. */
#ifndef TESTS_HARNESS_OP_RUN_H
#define TESTS_HARNESS_OP_RUN_H

#include "tests/harness/op_cases.h"
#include "tests/harness/random.h"

struct kept_run; /* see kept_runs.h */

struct op_run {
    liger_context *context;
    const struct op_cases *op;
    struct op_case c;
    struct op_types types;
    struct tensor_spec spec[OP_MAX_TENSORS];
    int64_t count[OP_MAX_TENSORS];    /* elements */
    double *t[OP_MAX_TENSORS];        /* NULL = absent */
    double *expected[OP_MAX_TENSORS]; /* outputs of op_run_expect */
    double *naive[OP_MAX_TENSORS];    /* outputs of op_run_naive */
    struct kept_run *kept;            /* what is known of such a run already, or NULL */
    const char *not_applicable;       /* set by op_run_not_applicable */
    char text[512];
};

/* Inputs drawn from `seed`, prepared and rounded; outputs zero. NULL if there is no memory. */
struct op_run *op_run_new(liger_context *context, const struct op_cases *op, const struct op_case *c,
                          struct op_types types, uint64_t seed);
/* Likewise, with data of a range. */
struct op_run *op_run_new_in(enum op_range range, liger_context *context, const struct op_cases *op,
                             const struct op_case *c, struct op_types types, uint64_t seed);
void op_run_free(struct op_run *run);

/* The values of one tensor, as its spec says, not rounded. */
void op_run_draw(const struct tensor_spec *spec, int64_t count, double *values, struct random_stream stream);

/* Rounds the inputs to their dtypes, calls the library on contiguous copies and stores its outputs in t. */
liger_status op_run_call(struct op_run *run);

/* The reference's outputs into `expected`, leaving t as it is. False: no memory. */
bool op_run_expect(struct op_run *run);

/* Those of the naive evaluation into `naive`. */
bool op_run_naive(struct op_run *run);

/* For a property that means nothing for this run; returns NULL. */
const char *op_run_not_applicable(struct op_run *run, const char *reason);

/* printf into run->text. */
const char *op_run_text(struct op_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A property: with each of these values of one size of the case, outputs are right within their budgets. */
const char *op_run_any_size(struct op_run *run, int index, const int64_t *values, int count);

#endif
