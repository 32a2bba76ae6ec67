/* softmax_ref.h - the double-precision reference of softmax, and the same loops in f32, for its cases. Test code. */
#ifndef LIGER_OPS_SOFTMAX_REF_H
#define LIGER_OPS_SOFTMAX_REF_H

#include <stdint.h>

void softmax_forward_ref(int64_t rows, int64_t cols, const double *x, double *y);
void softmax_backward_ref(int64_t rows, int64_t cols, const double *dy, const double *y, double *dx);
void softmax_forward_naive(int64_t rows, int64_t cols, const double *x, double *y);
void softmax_backward_naive(int64_t rows, int64_t cols, const double *dy, const double *y, double *dx);

#endif
