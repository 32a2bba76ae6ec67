/* tvd_ref.h - one element of the total variation distance in double precision, and the same in f32, each operation rounded.
 * Test code. */
#ifndef LIGER_OPS_TVD_REF_H
#define LIGER_OPS_TVD_REF_H

#include <stdbool.h>

void tvd_reference(double x, double y, double *value, double *slope);
void tvd_naive(double x, double y, double *value, double *slope);

#endif
