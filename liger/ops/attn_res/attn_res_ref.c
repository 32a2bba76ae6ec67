/* attn_res_ref.c - attn_res in double precision, straight from the formulas. */
#include "liger/ops/attn_res/attn_res_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double
#endif

void attn_res_forward_ref(const struct attn_res_ref *p, double *h, double *alpha, double *rstd) {
    for (int64_t r = 0; r < p->rows; r++) {
        REAL most = -INFINITY, total = 0;
        for (int64_t row = r; row < p->blocks * p->rows; row += p->rows) {
            const double *v = p->v + row * p->cols;
            REAL squares = 0, score = 0;
            for (int64_t c = 0; c < p->cols; c++) squares += (REAL)v[c] * (REAL)v[c];
            const REAL root = sqrt(squares / (REAL)p->cols + (REAL)p->epsilon), scale = 1 / root;
            for (int64_t c = 0; c < p->cols; c++)
                score += (REAL)p->query[c] * ((REAL)op_round(p->norm_dtype, (REAL)v[c] * scale) * (REAL)p->norm[c]);
            rstd[row] = scale, alpha[row] = score;
            if (score > most) most = score;
        }
        for (int64_t row = r; row < p->blocks * p->rows; row += p->rows) total += (REAL)exp((REAL)alpha[row] - most);
        for (int64_t c = 0; c < p->cols; c++) h[r * p->cols + c] = 0;
        for (int64_t row = r; row < p->blocks * p->rows; row += p->rows) {
            alpha[row] = (REAL)exp((REAL)alpha[row] - most) / total;
            for (int64_t c = 0; c < p->cols; c++)
                h[r * p->cols + c] = (REAL)h[r * p->cols + c] + (REAL)alpha[row] * (REAL)p->v[row * p->cols + c];
        }
    }
}

static REAL dot(const double *a, const double *b, int64_t count) {
    REAL sum = 0;
    for (int64_t c = 0; c < count; c++) sum += (REAL)a[c] * (REAL)b[c];
    return sum;
}

void attn_res_backward_ref(const struct attn_res_ref *p, const double *dh, const double *alpha, const double *rstd,
                           double *dv, double *dquery, double *dnorm) {
    const int64_t cols = p->cols, end = p->blocks * p->rows;
    for (int64_t c = 0; c < cols; c++) {
        if (dquery) dquery[c] = 0;
        if (dnorm) dnorm[c] = 0;
    }
    for (int64_t row = 0; row < end; row++) {
        const double *up = dh + row % p->rows * cols, *v = p->v + row * cols;
        REAL total = 0, mean = 0;
        for (int64_t m = row % p->rows; m < end; m += p->rows) total += (REAL)alpha[m] * dot(up, p->v + m * cols, cols);
        const REAL scale = rstd[row], ds = (REAL)alpha[row] * (dot(up, v, cols) - total);
        for (int64_t c = 0; c < cols; c++)
            mean += (REAL)p->query[c] * (REAL)p->norm[c] * (REAL)v[c] * scale / (REAL)cols;
        for (int64_t c = 0; c < cols; c++) {
            const REAL normal = (REAL)v[c] * scale, query = p->query[c], norm = p->norm[c];
            const REAL part = ds * (REAL)op_round(p->norm_dtype, normal);
            const REAL gradient = (REAL)alpha[row] * (REAL)up[c] + ds * scale * (query * norm - normal * mean);
            if (dv) dv[row * cols + c] = gradient;
            if (dquery) dquery[c] = (REAL)dquery[c] + norm * part;
            if (dnorm) dnorm[c] = (REAL)dnorm[c] + query * part;
        }
    }
}
