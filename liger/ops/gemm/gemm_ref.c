/* gemm_ref.c - what a matrix product is: double precision, three loops, contiguous row-major matrices.
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

void gemm_ref(int64_t m, int64_t n, int64_t k, bool ta, bool tb, const double *a, const double *b, const double *bias,
              double *c, bool accumulate) {
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            REAL sum = bias ? bias[j] : 0;
            for (int64_t p = 0; p < k; p++)
                sum += (REAL)a[ta ? p * m + i : i * k + p] * (REAL)b[tb ? j * k + p : p * n + j];
            c[i * n + j] = accumulate ? (REAL)c[i * n + j] + sum : sum;
        }
    }
}
