/* rms_norm_ref.c - RMSNorm in double precision, straight from the formulas. Never optimised.
 *
 * REAL: rms_norm_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/rms_norm/rms_norm_ref.h"

#include <math.h>

#include "liger/ops/rms_norm/rms_norm.h"

#ifndef REAL
#define REAL double
#endif

static REAL rounded_if(bool yes, liger_dtype t, REAL v) { return yes ? op_round(t, v) : v; }

void rms_norm_ref_forward(const struct rms_norm_ref *p, double *y, double *rstd) {
    const liger_dtype t = p->types.t;
    const bool llama = p->casting == LIGER_CAST_LLAMA, none = p->casting == LIGER_CAST_NONE;
    const REAL epsilon = rounded_if(none, t, p->epsilon), offset = rounded_if(none, t, p->offset);
    for (int64_t r = 0; r < p->rows; r++) {
        const double *x = p->x + r * p->cols;
        REAL squares = 0;
        for (int64_t c = 0; c < p->cols; c++) squares += (REAL)x[c] * (REAL)x[c];
        const REAL root = sqrt(squares / (REAL)p->cols + epsilon), scale = rounded_if(none, t, 1 / root);
        for (int64_t c = 0; c < p->cols; c++) {
            const REAL normal = (REAL)x[c] * scale;
            y[r * p->cols + c] = normal;
            if (p->weight == NULL) continue;
            const REAL weight = rounded_if(none && p->types.weight == t, t, (REAL)p->weight[c] + offset);
            y[r * p->cols + c] = rounded_if(llama, t, normal) * weight;
        }
        if (rstd) rstd[r] = scale;
    }
}

/* dy · (weight + offset) of one column. */
static REAL m_of(const struct rms_norm_ref *p, const double *dy, int64_t c) {
    return (REAL)dy[c] * (p->weight ? (REAL)p->weight[c] + (REAL)p->offset : 1);
}

void rms_norm_ref_backward(const struct rms_norm_ref *p, const double *dy, const double *dsum, const double *rstd,
                           double *dx, double *dweight) {
    const bool llama = p->casting == LIGER_CAST_LLAMA;
    for (int64_t c = 0; dweight && c < p->cols; c++) dweight[c] = 0;
    for (int64_t r = 0; r < p->rows; r++) {
        const double *x = p->x + r * p->cols, *d = dy + r * p->cols;
        const REAL scale = rstd[r];
        REAL dot = 0;
        for (int64_t c = 0; c < p->cols; c++) dot += m_of(p, d, c) * (REAL)x[c];
        for (int64_t c = 0; c < p->cols; c++) {
            const REAL pull = (REAL)x[c] * scale * scale * scale * dot / (REAL)p->cols;
            const REAL gradient = scale * m_of(p, d, c) - pull;
            if (dx) dx[r * p->cols + c] = gradient + (dsum ? (REAL)dsum[r * p->cols + c] : 0);
            const REAL part = (REAL)d[c] * rounded_if(llama, p->types.t, (REAL)x[c] * scale);
            if (dweight) dweight[c] = (REAL)dweight[c] + part;
        }
    }
}
