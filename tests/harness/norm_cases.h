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
/* Rows whose squares are added up. */
struct tensor_spec norm_input(const struct op_case *c, const char *name, uint32_t ranges);

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

/* Tensors of a norm's backward by their place in a case; the gradients of parameters stand one after the other. */
struct norm_tensors {
    int dy, x, weight, rstd, scale; /* scale: -1, there is none */
    int gradients, count;
};
/* A property: what enters the gradients of f32 parameters is rounded to a 16-bit T where the reference rounds it, and nowhere
 * else. With operands of few bits x·rstd and its product with the weight are exact in f32: no rounding may fall elsewhere than
 * the reference's, and the sums are held to f32. */
const char *norm_inner_roundings(struct op_run *run, const struct norm_tensors *at);

#endif
