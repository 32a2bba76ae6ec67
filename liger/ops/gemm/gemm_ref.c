/* gemm_ref.c - what a matrix product is: double precision, three loops, contiguous row-major matrices. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void gemm_ref(int64_t m, int64_t n, int64_t k, bool ta, bool tb, const double *a, const double *b, const double *bias,
              double *c, bool accumulate);

void gemm_ref(int64_t m, int64_t n, int64_t k, bool ta, bool tb, const double *a, const double *b, const double *bias,
              double *c, bool accumulate) {
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            double sum = bias ? bias[j] : 0.0;
            for (int64_t p = 0; p < k; p++) sum += a[ta ? p * m + i : i * k + p] * b[tb ? j * k + p : p * n + j];
            c[i * n + j] = accumulate ? c[i * n + j] + sum : sum;
        }
    }
}
