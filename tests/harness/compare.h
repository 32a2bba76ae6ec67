/* compare.h - is an output what the reference says, within its budget? */
#ifndef TESTS_HARNESS_COMPARE_H
#define TESTS_HARNESS_COMPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/harness/op_cases.h"

struct comparison {
    double worst;  /* largest error in units of the budget; infinite for a NaN or an infinity in the wrong place */
    int64_t index; /* where; -1 if there are no elements */
    double got, expected;
};

/* Budget as in tensor_spec; `dtype` is the output's, `t` that of the activations. The comparison fails if worst > 1. */
struct comparison compare_values(const struct tensor_spec *spec, liger_dtype dtype, liger_dtype t, int64_t count,
                                 const double *got, const double *expected);

/* The largest error as it is, not in units of a budget; infinite for a NaN or an infinity in the wrong place. */
struct comparison compare_errors(int64_t count, const double *got, const double *expected);

/* The largest finite magnitude. */
double compare_magnitude(int64_t count, const double *values);

#endif
