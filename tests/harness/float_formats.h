/* float_formats.h - f32, f16 and bf16 as defined, not as the library converts them: rounding is done in double, to the
 * nearest value and to even on a tie, so that an error in the library's own conversions cannot hide. */
#ifndef TESTS_HARNESS_FLOAT_FORMATS_H
#define TESTS_HARNESS_FLOAT_FORMATS_H

#include <stdbool.h>

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

#endif
