/* column_sum_ref.c - what a column sum is: double precision, two loops. */
#include <stdbool.h>
#include <stdint.h>

void column_sum_reference(int64_t rows, int64_t cols, const double *x, double *sum, bool accumulate);

void column_sum_reference(int64_t rows, int64_t cols, const double *x, double *sum, bool accumulate) {
    for (int64_t c = 0; c < cols; c++) {
        double total = accumulate ? sum[c] : 0;
        for (int64_t r = 0; r < rows; r++) total += x[r * cols + c];
        sum[c] = total;
    }
}
