/* column_sum_ref.c - what a column sum is: double precision, two loops.
 *
 * REAL: column_sum_naive_ref.c compiles the same loops in f32. */
#include <stdbool.h>
#include <stdint.h>

#ifndef REAL
#define REAL double
#endif

void column_sum_reference(int64_t rows, int64_t cols, const double *x, double *sum, bool accumulate);

void column_sum_reference(int64_t rows, int64_t cols, const double *x, double *sum, bool accumulate) {
    for (int64_t c = 0; c < cols; c++) {
        REAL total = accumulate ? sum[c] : 0;
        for (int64_t r = 0; r < rows; r++) total += (REAL)x[r * cols + c];
        sum[c] = total;
    }
}
