/* relu_squared_ref.h - the double-precision reference of relu_squared, for its cases. Test code. */
#ifndef LIGER_OPS_RELU_SQUARED_REF_H
#define LIGER_OPS_RELU_SQUARED_REF_H

#include <stdint.h>

void relu_squared_forward_ref(int64_t count, const double *x, double *y);
void relu_squared_backward_ref(int64_t count, const double *dy, const double *x, double *dx);

#endif
