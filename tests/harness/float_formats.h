/* float_formats.h - f32, f16 and bf16 as defined, not as the library converts them: rounding is done in double, to the
 * nearest value and to even on a tie, so that an error in the library's own conversions cannot hide. */
#ifndef TESTS_HARNESS_FLOAT_FORMATS_H
#define TESTS_HARNESS_FLOAT_FORMATS_H

#include <stdbool.h>
#include <stdint.h>

#include "liger/core/tensor.h"

bool format_is_float(liger_dtype dtype);
/* Unit roundoff: half the distance from 1 to the next value. */
double format_unit(liger_dtype dtype);
/* The smallest positive (subnormal) value. */
double format_smallest(liger_dtype dtype);
/* The smallest positive number of full precision. */
double format_normal(liger_dtype dtype);
double format_largest(liger_dtype dtype);

/* One element. A float is rounded first; an integer must be exact. */
void format_store(liger_dtype dtype, void *element, double value);
double format_load(liger_dtype dtype, const void *element);

/* Many at once, which is what tests spend their time on: op_round, format_store and format_load of each. */
void format_round(liger_dtype dtype, double *values, int64_t count);
void format_store_all(liger_dtype dtype, void *elements, const double *values, int64_t count);
void format_load_all(liger_dtype dtype, const void *elements, double *values, int64_t count);

#endif
