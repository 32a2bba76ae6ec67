/* sparsemax_ref.c - what the operator is: double precision, sorted, never optimised. */
#include "liger/ops/sparsemax/sparsemax_ref.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#ifndef REAL
#define REAL double
#endif

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* In descending order those that may exceed tau, which is max - 1 at least: the largest result is 1 at most. */
static int64_t sort_candidates(int64_t cols, const double *x, double *sorted) {
    double max = x[0];
    int64_t count = 0;
    for (int64_t j = 1; j < cols; j++) max = fmax(max, x[j]);
    for (int64_t j = 0; j < cols; j++)
        if (x[j] >= max - 1) sorted[count++] = x[j];
    qsort(sorted, (size_t)count, sizeof *sorted, by_size);
    return count;
}

/* A shift of all values shifts tau: of differences to the largest nothing is lost where it counts. */
static REAL tau_below_max(int64_t count, const double *sorted) {
    REAL sum = 0, of_support = 0;
    int64_t support = 0;
    for (int64_t j = 1; j <= count; j++) {
        const REAL z = (REAL)(sorted[j - 1] - sorted[0]);
        sum += z;
        if (1 + (REAL)j * z > sum) support = j, of_support = sum;
    }
    return (of_support - 1) / (REAL)support;
}

static bool has_tau(int64_t cols, const double *x) {
    bool some = false;
    for (int64_t j = 0; j < cols; j++) {
        if (isnan(x[j]) || x[j] == INFINITY) return false;
        some = some || isfinite(x[j]);
    }
    return some;
}

static void put_bit(double *support, int64_t j, bool bit) {
    const uint32_t word = j % 32 ? (uint32_t)(int32_t)support[j / 32] : 0;
    support[j / 32] = (int32_t)(word | (uint32_t)bit << j % 32);
}

static bool bit_of(const double *support, int64_t j) { return (uint32_t)(int32_t)support[j / 32] >> j % 32 & 1; }

void sparsemax_forward_ref(int64_t rows, int64_t cols, const double *x, double *y, double *support) {
    double *const sorted = malloc((size_t)cols * sizeof *sorted);
    if (sorted == NULL) abort();
    for (int64_t r = 0; r < rows; r++, x += cols, y += cols) {
        const bool defined = has_tau(cols, x);
        REAL tau = NAN;
        if (defined) {
            tau = tau_below_max(sort_candidates(cols, x, sorted), sorted);
        }
        for (int64_t j = 0; j < cols; j++) {
            const REAL over = defined ? (REAL)(x[j] - sorted[0]) - tau : (REAL)NAN;
            y[j] = over <= 0 ? 0 : over;
            if (support != NULL) put_bit(support + r * ((cols + 31) / 32), j, !(over <= 0));
        }
    }
    free(sorted);
}

void sparsemax_backward_ref(int64_t rows, int64_t cols, const double *dy, const double *support, double *dx) {
    for (int64_t r = 0; r < rows; r++, dy += cols, dx += cols, support += (cols + 31) / 32) {
        REAL sum = 0;
        int64_t count = 0;
        for (int64_t j = 0; j < cols; j++)
            if (bit_of(support, j)) sum += (REAL)dy[j], count++;
        for (int64_t j = 0; j < cols; j++) dx[j] = bit_of(support, j) ? (REAL)dy[j] - sum / (REAL)count : 0;
    }
}
