/* layer_norm_ref.c - LayerNorm as three loops. */
#include "liger/ops/layer_norm/layer_norm_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double
#endif

void layer_norm_ref_forward(const struct layer_norm_ref *p, double *y, double *mean, double *rstd) {
    for (int64_t r = 0; r < p->rows; r++) {
        const double *x = p->x + r * p->cols;
        REAL sum = 0, squares = 0;
        for (int64_t c = 0; c < p->cols; c++) sum += (REAL)x[c];
        const REAL centre = sum / (REAL)p->cols;
        for (int64_t c = 0; c < p->cols; c++) squares += ((REAL)x[c] - centre) * ((REAL)x[c] - centre);
        const REAL inverse = (REAL)1 / (REAL)sqrt((double)(squares / (REAL)p->cols + (REAL)p->epsilon));
        for (int64_t c = 0; c < p->cols; c++) {
            const REAL normal = ((REAL)x[c] - centre) * inverse;
            y[r * p->cols + c] = (p->weight ? (REAL)p->weight[c] : 1) * normal + (p->bias ? (REAL)p->bias[c] : 0);
        }
        if (mean) mean[r] = centre;
        if (rstd) rstd[r] = inverse;
    }
}

void layer_norm_ref_backward(const struct layer_norm_ref *p, const double *dy, const double *mean, const double *rstd,
                             double *dx, double *dweight, double *dbias) {
    for (int64_t r = 0; dx && r < p->rows; r++) {
        const double *x = p->x + r * p->cols, *up = dy + r * p->cols;
        const REAL centre = (REAL)mean[r], inverse = (REAL)rstd[r];
        REAL sum = 0, dot = 0;
        for (int64_t c = 0; c < p->cols; c++) {
            const REAL g = (REAL)up[c] * (p->weight ? (REAL)p->weight[c] : 1);
            sum += g;
            dot += g * (((REAL)x[c] - centre) * inverse);
        }
        for (int64_t c = 0; c < p->cols; c++) {
            const REAL g = (REAL)up[c] * (p->weight ? (REAL)p->weight[c] : 1);
            const REAL normal = ((REAL)x[c] - centre) * inverse;
            dx[r * p->cols + c] = inverse * (g - sum / (REAL)p->cols - normal * (dot / (REAL)p->cols));
        }
    }
    for (int64_t c = 0; c < p->cols; c++) {
        REAL weighted = 0, plain = 0;
        for (int64_t r = 0; r < p->rows; r++) {
            const REAL up = (REAL)dy[r * p->cols + c];
            weighted += up * (((REAL)p->x[r * p->cols + c] - (REAL)mean[r]) * (REAL)rstd[r]);
            plain += up;
        }
        if (dweight) dweight[c] = weighted;
        if (dbias) dbias[c] = plain;
    }
}
