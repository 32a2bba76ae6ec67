/* norm_cases.h - what the cases of norms share. */
#ifndef TESTS_HARNESS_NORM_CASES_H
#define TESTS_HARNESS_NORM_CASES_H

#include "tests/harness/op_cases.h"

/* Scalars of a case; a room's own follow. */
enum { EPSILON, NORM_SCALARS };

/* The ranges of an input whose powers are added up in f32: up to `huge` they must not overflow, nor, where no epsilon is added
 * to them, vanish below `tiny`. */
void norm_ranges(const struct op_case *c, struct tensor_spec *spec, uint32_t ranges, double huge, double tiny);
/* Of squares. */
#define NORM_OF_SQUARES 0x1p55, 0x1p-55

/* 1 / sqrt(mean(row^(2·power)) + epsilon) of one row. */
double norm_rstd(const struct op_case *c, const double *row, int64_t cols, int power);
/* Mean of one row, and rstd of what is left of it without its mean. */
struct norm_moments {
    double mean, rstd;
};
struct norm_moments norm_moments(const struct op_case *c, const double *row, int64_t cols);

/* A property: a row of one value has no variance and is exactly its own mean. y is then its column's bias, whatever epsilon
 * is: bias[i / spatial % channels] of element i, or 0. */
const char *norm_of_one_value(struct op_run *run, int x, int y, int64_t cols, int bias, int64_t spatial);

#endif
