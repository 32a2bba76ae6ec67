/* dyt_ref.c - dynamic tanh as two loops.
 *
 * REAL: dyt_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/dyt/dyt_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double
#endif

void dyt_ref_forward(const struct dyt_ref *p, double *y);

void dyt_ref_forward(const struct dyt_ref *p, double *y) {
    for (int64_t i = 0; i < p->rows * p->cols; i++) {
        const int64_t c = i % p->cols;
        const REAL t = (REAL)tanh((double)((REAL)*p->alpha * (REAL)p->x[i]));
        y[i] = (REAL)p->gamma[c] * t + (p->beta ? (REAL)p->beta[c] : 0);
    }
}

void dyt_ref_backward(const struct dyt_ref *p, const double *dy, double *dx, double *dalpha, double *dgamma,
                      double *dbeta) {
    const REAL alpha = (REAL)*p->alpha;
    REAL along = 0;
    for (int64_t c = 0; c < p->cols; c++) {
        REAL weighted = 0, plain = 0;
        for (int64_t i = c; i < p->rows * p->cols; i += p->cols) {
            const REAL x = (REAL)p->x[i], up = (REAL)dy[i];
            const double e = exp(-2 * fabs((double)(alpha * x)));
            const REAL u = up * (REAL)p->gamma[c] * (REAL)(4 * e / ((1 + e) * (1 + e)));
            weighted += up * (REAL)tanh((double)(alpha * x));
            plain += up;
            along += u * x;
            if (dx) dx[i] = alpha * u;
        }
        if (dgamma) dgamma[c] = weighted;
        if (dbeta) dbeta[c] = plain;
    }
    if (dalpha) *dalpha = along;
}
