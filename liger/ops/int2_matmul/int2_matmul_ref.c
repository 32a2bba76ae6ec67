/* int2_matmul_ref.c - what the operator is: plain loops over integers, never optimised. Values come and go as doubles. */
#include <stdint.h>

void int2_matmul_ref(int64_t m, int64_t n, int64_t packed, const double *a, const double *b, double *c);

static double weight(const double *b, int64_t n, int64_t packed, int64_t k, int64_t column) {
    const int byte = (int)b[k % packed * n + column];
    return (byte >> 2 * (k / packed) & 3) - 1;
}

/* The sum as an i32 has it. */
static double wrapped(double sum) {
    const double range = 0x1p32;
    while (sum >= range / 2) sum -= range;
    while (sum < -range / 2) sum += range;
    return sum;
}

void int2_matmul_ref(int64_t m, int64_t n, int64_t packed, const double *a, const double *b, double *c) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0; /* of integers below 2^53 */
            for (int64_t k = 0; k < 4 * packed; k++) sum += a[i * 4 * packed + k] * weight(b, n, packed, k, j);
            c[i * n + j] = wrapped(sum);
        }
}
