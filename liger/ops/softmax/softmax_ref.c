/* softmax_ref.c - what the operator is: double precision, plain loops, never optimised. */
#include "liger/ops/softmax/softmax_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double
#endif

void softmax_forward_ref(int64_t rows, int64_t cols, const double *x, double *y) {
    for (int64_t r = 0; r < rows; r++, x += cols, y += cols) {
        REAL max = -INFINITY, sum = 0;
        for (int64_t j = 0; j < cols; j++)
            if ((REAL)x[j] > max) max = (REAL)x[j];
        for (int64_t j = 0; j < cols; j++) sum += (REAL)exp((REAL)x[j] - max);
        for (int64_t j = 0; j < cols; j++) y[j] = (REAL)exp((REAL)x[j] - max) / sum;
    }
}

void softmax_backward_ref(int64_t rows, int64_t cols, const double *dy, const double *y, double *dx) {
    for (int64_t r = 0; r < rows; r++, dy += cols, y += cols, dx += cols) {
        REAL sum = 0;
        for (int64_t j = 0; j < cols; j++) sum += (REAL)y[j] * (REAL)dy[j];
        for (int64_t j = 0; j < cols; j++) dx[j] = (REAL)y[j] * ((REAL)dy[j] - sum);
    }
}
