/* poly_norm_ref.c - PolyNorm, power by power.
 *
 * REAL: poly_norm_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/poly_norm/poly_norm_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double
#endif

static REAL power(double x, int exponent) {
    REAL product = 1;
    for (int i = 0; i < exponent; i++) product *= (REAL)x;
    return product;
}

void poly_norm_ref_forward(const struct poly_norm_ref *p, double *y, double *rstd) {
    for (int64_t r = 0; r < p->rows; r++) {
        const double *x = p->x + r * p->cols;
        REAL inverse[3];
        for (int k = 0; k < 3; k++) {
            REAL sum = 0;
            for (int64_t c = 0; c < p->cols; c++) sum += power(x[c], 3 - k) * power(x[c], 3 - k);
            inverse[k] = (REAL)1 / (REAL)sqrt((double)(sum / (REAL)p->cols + (REAL)p->epsilon));
            if (rstd) rstd[3 * r + k] = inverse[k];
        }
        for (int64_t c = 0; c < p->cols; c++) {
            REAL sum = (REAL)p->bias[0];
            for (int k = 0; k < 3; k++) sum += (REAL)p->weight[k] * inverse[k] * power(x[c], 3 - k);
            y[r * p->cols + c] = sum;
        }
    }
}

void poly_norm_ref_backward(const struct poly_norm_ref *p, const double *dy, const double *rstd, double *dx,
                            double *dweight, double *dbias) {
    REAL total[4] = {0, 0, 0, 0};
    for (int64_t r = 0; r < p->rows; r++) {
        const double *x = p->x + r * p->cols, *up = dy + r * p->cols;
        for (int64_t c = 0; dx && c < p->cols; c++) dx[r * p->cols + c] = 0;
        for (int k = 0; k < 3; k++) {
            const REAL inverse = (REAL)rstd[3 * r + k];
            REAL dot = 0;
            for (int64_t c = 0; c < p->cols; c++) dot += (REAL)up[c] * power(x[c], 3 - k);
            total[k] += dot * inverse;
            for (int64_t c = 0; dx && c < p->cols; c++) {
                const REAL slope = (REAL)p->weight[k] * (REAL)(3 - k) * power(x[c], 2 - k) * inverse;
                const REAL normal = power(x[c], 3 - k) * inverse;
                dx[r * p->cols + c] += slope * ((REAL)up[c] - normal * (inverse * (dot / (REAL)p->cols)));
            }
        }
        for (int64_t c = 0; c < p->cols; c++) total[3] += (REAL)up[c];
    }
    for (int k = 0; dweight && k < 3; k++) dweight[k] = total[k];
    if (dbias) *dbias = total[3];
}
