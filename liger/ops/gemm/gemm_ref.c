/* gemm_ref.c - what a matrix product is: double precision, a loop for each size, contiguous row-major matrices.
 *
 * REAL: gemm_naive_ref.c compiles the same loops in f32. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef REAL
#define REAL double
#endif

void gemm_ref(int64_t m, int64_t n, int64_t k, bool ta, bool tb, const double *a, const double *b, const double *bias,
              double *c, bool accumulate);

/* So many columns side by side: each sum still adds its products one after the other, but waits for no other sum. */
enum { COLUMNS = 32 };

static void row_of_sums(int64_t n, int64_t k, bool tb, const double *a, int64_t a_step, const double *b, REAL *sum,
                        int64_t columns) {
    for (int64_t p = 0; p < k; p++)
        for (int64_t j = 0; j < columns; j++) sum[j] += (REAL)a[p * a_step] * (REAL)b[tb ? j * k + p : p * n + j];
}

void gemm_ref(int64_t m, int64_t n, int64_t k, bool ta, bool tb, const double *a, const double *b, const double *bias,
              double *c, bool accumulate) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t first = 0; first < n; first += COLUMNS) {
            const int64_t columns = n - first < COLUMNS ? n - first : COLUMNS;
            REAL sum[COLUMNS];
            for (int64_t j = 0; j < columns; j++) sum[j] = bias ? bias[first + j] : 0;
            row_of_sums(n, k, tb, ta ? a + i : a + i * k, ta ? m : 1, tb ? b + first * k : b + first, sum, columns);
            for (int64_t j = 0; j < columns; j++) {
                double *at = &c[i * n + first + j];
                *at = accumulate ? (REAL)*at + sum[j] : sum[j];
            }
        }
}
