/* rows_cases.h - what the cases of operators on rows share: x is [rows, cols], [outer, rows, cols] if outer > 0, or [cols] if
 * rows < 0. */
#ifndef TESTS_HARNESS_ROWS_CASES_H
#define TESTS_HARNESS_ROWS_CASES_H

#include "tests/harness/op_cases.h"

/* Sizes of a case; a room's own follow. */
enum { OUTER, ROWS, COLS, ROWS_SIZES };

int64_t rows_of(const struct op_case *c);
int64_t elements_of(const struct op_case *c);

/* Of the shape of x and its dtype. */
struct tensor_spec rows_tensor(const struct op_case *c, const char *name, enum tensor_role role);
/* One f32 number for each row. */
struct tensor_spec rows_statistic(const struct op_case *c, const char *name, enum tensor_role role, bool absent);

/* A property: the rows of tensor `y` sum to 1, but for a rounding to T, `units` of f32, and in f16 half a step of the
 * subnormal numbers each. */
const char *rows_sum_to_one(struct op_run *run, int y, double units);

#endif
