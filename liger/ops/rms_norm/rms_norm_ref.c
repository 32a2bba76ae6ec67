/* rms_norm_ref.c - RMSNorm in double precision, straight from the formulas. Never optimised. */
#include "liger/ops/rms_norm/rms_norm_ref.h"

#include <math.h>

#include "liger/ops/rms_norm/rms_norm.h"

static double rounded_if(bool yes, liger_dtype t, double v) { return yes ? op_round(t, v) : v; }

void rms_norm_ref_forward(const struct rms_norm_ref *p, double *y, double *rstd) {
    const liger_dtype t = p->types.t;
    const bool llama = p->casting == LIGER_CAST_LLAMA, none = p->casting == LIGER_CAST_NONE;
    const double epsilon = rounded_if(none, t, p->epsilon), offset = rounded_if(none, t, p->offset);
    for (int64_t r = 0; r < p->rows; r++) {
        const double *x = p->x + r * p->cols;
        double squares = 0;
        for (int64_t c = 0; c < p->cols; c++) squares += x[c] * x[c];
        const double scale = rounded_if(none, t, 1 / sqrt(squares / (double)p->cols + epsilon));
        for (int64_t c = 0; c < p->cols; c++) {
            y[r * p->cols + c] = x[c] * scale;
            if (p->weight == NULL) continue;
            const double weight = rounded_if(none && p->types.weight == t, t, p->weight[c] + offset);
            y[r * p->cols + c] = rounded_if(llama, t, x[c] * scale) * weight;
        }
        if (rstd) rstd[r] = scale;
    }
}

void rms_norm_ref_backward(const struct rms_norm_ref *p, const double *dy, const double *dsum, const double *rstd,
                           double *dx, double *dweight) {
    const bool llama = p->casting == LIGER_CAST_LLAMA;
    for (int64_t c = 0; dweight && c < p->cols; c++) dweight[c] = 0;
    for (int64_t r = 0; r < p->rows; r++) {
        const double *x = p->x + r * p->cols, *d = dy + r * p->cols;
        double dot = 0;
        for (int64_t c = 0; c < p->cols; c++) dot += d[c] * (p->weight ? p->weight[c] + p->offset : 1) * x[c];
        for (int64_t c = 0; c < p->cols; c++) {
            const double m = d[c] * (p->weight ? p->weight[c] + p->offset : 1);
            const double pull = x[c] * rstd[r] * rstd[r] * rstd[r] * dot / (double)p->cols;
            if (dx) dx[r * p->cols + c] = rstd[r] * m - pull + (dsum ? dsum[r * p->cols + c] : 0);
            if (dweight) dweight[c] += d[c] * rounded_if(llama, p->types.t, x[c] * rstd[r]);
        }
    }
}
