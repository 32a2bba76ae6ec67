/* group_norm_ref.c - GroupNorm as loops over groups and over channels.
 *
 * REAL: group_norm_naive_ref.c compiles the same loops in f32. */
#include "liger/ops/group_norm/group_norm_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double
#endif

static int64_t cols_of(const struct group_norm_ref *p) { return p->channels / p->groups * p->spatial; }
static int64_t channel_of(const struct group_norm_ref *p, int64_t i) { return i / p->spatial % p->channels; }

void group_norm_ref_forward(const struct group_norm_ref *p, double *y, double *statistics) {
    const int64_t rows = p->batch * p->groups, cols = cols_of(p);
    for (int64_t r = 0; r < rows; r++) {
        REAL sum = 0, squares = 0;
        for (int64_t i = r * cols; i < (r + 1) * cols; i++) sum += (REAL)p->x[i];
        const REAL mean = sum / (REAL)cols;
        for (int64_t i = r * cols; i < (r + 1) * cols; i++) squares += ((REAL)p->x[i] - mean) * ((REAL)p->x[i] - mean);
        const REAL rstd = (REAL)1 / (REAL)sqrt((double)(squares / (REAL)cols + (REAL)p->epsilon));
        for (int64_t i = r * cols; i < (r + 1) * cols; i++) {
            const int64_t c = channel_of(p, i);
            y[i] = ((REAL)p->x[i] - mean) * rstd * (REAL)p->weight[c] + (p->bias ? (REAL)p->bias[c] : 0);
        }
        if (statistics) statistics[r] = mean, statistics[rows + r] = rstd;
    }
}

void group_norm_ref_backward(const struct group_norm_ref *p, const double *dy, const double *statistics, double *dx,
                             double *dweight, double *dbias) {
    const int64_t rows = p->batch * p->groups, cols = cols_of(p);
    for (int64_t r = 0; dx && r < rows; r++) {
        const REAL mean = (REAL)statistics[r], rstd = (REAL)statistics[rows + r];
        REAL sum = 0, dot = 0;
        for (int64_t i = r * cols; i < (r + 1) * cols; i++) {
            const REAL g = (REAL)dy[i] * (REAL)p->weight[channel_of(p, i)];
            sum += g;
            dot += g * (((REAL)p->x[i] - mean) * rstd);
        }
        for (int64_t i = r * cols; i < (r + 1) * cols; i++) {
            const REAL g = (REAL)dy[i] * (REAL)p->weight[channel_of(p, i)], n = ((REAL)p->x[i] - mean) * rstd;
            dx[i] = rstd * (g - sum / (REAL)cols - n * (dot / (REAL)cols));
        }
    }
    for (int64_t c = 0; c < p->channels; c++) {
        REAL weighted = 0, plain = 0;
        for (int64_t b = 0; b < p->batch; b++)
            for (int64_t s = 0; s < p->spatial; s++) {
                const int64_t i = (b * p->channels + c) * p->spatial + s;
                const int64_t r = b * p->groups + c / (p->channels / p->groups);
                weighted += (REAL)dy[i] * (((REAL)p->x[i] - (REAL)statistics[r]) * (REAL)statistics[rows + r]);
                plain += (REAL)dy[i];
            }
        if (dweight) dweight[c] = weighted;
        if (dbias) dbias[c] = plain;
    }
}
