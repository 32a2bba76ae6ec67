/* sparsemax_ref.h - the double-precision reference of sparsemax, and the same loops in f32, for its cases. Test code. */
#ifndef LIGER_OPS_SPARSEMAX_REF_H
#define LIGER_OPS_SPARSEMAX_REF_H

#include <stdint.h>

/* `support` may be NULL: words of 32 bits, as integers. */
void sparsemax_forward_ref(int64_t rows, int64_t cols, const double *x, double *y, double *support);
void sparsemax_backward_ref(int64_t rows, int64_t cols, const double *dy, const double *support, double *dx);
void sparsemax_forward_naive(int64_t rows, int64_t cols, const double *x, double *y, double *support);
void sparsemax_backward_naive(int64_t rows, int64_t cols, const double *dy, const double *support, double *dx);

#endif
