/* modulated_rms_norm_ref.c - modulated RMSNorm in double precision, on the reference of RMSNorm. */
#include "liger/ops/modulated_rms_norm/modulated_rms_norm_ref.h"

#include "liger/ops/rms_norm/rms_norm.h"

#ifndef REAL
#define REAL double
#endif

void modulated_ref_forward(const struct modulated_ref *p, double *y, double *rstd) {
    const int64_t cols = p->norm.cols;
    const bool llama = p->norm.casting == LIGER_CAST_LLAMA, gemma = p->norm.casting == LIGER_CAST_GEMMA;
    const bool rounded = gemma || (llama && p->norm.weight == NULL); /* with a weight llama rounds before it */
    rms_norm_ref_forward(&p->norm, y, rstd);
    for (int64_t i = 0; i < p->norm.rows * cols; i++) {
        const int64_t at = i / cols / p->group_rows * cols + i % cols;
        const REAL normal = rounded ? op_round(p->norm.types.t, y[i]) : y[i];
        y[i] = normal * (1 + (REAL)p->scale[at]) + (p->shift ? (REAL)p->shift[at] : 0);
    }
}

/* weight + offset as forward has it. */
static REAL weight_of(const struct modulated_ref *p, int64_t c) {
    const liger_dtype t = p->norm.types.t;
    const bool none = p->norm.casting == LIGER_CAST_NONE;
    const REAL offset = none ? (REAL)op_round(t, p->norm.offset) : (REAL)p->norm.offset;
    REAL weight = p->norm.weight ? (REAL)p->norm.weight[c] + offset : 1;
    return none && p->norm.types.weight == t ? (REAL)op_round(t, weight) : weight;
}

/* One column of a group: Σ dy·x̂ (LLAMA: rounded), Σ dy·RMSNorm(x), whose weight is one factor but where the product with it is
 * rounded, and Σ dy. */
struct sums {
    REAL products, normals, upstreams;
};
static struct sums column_of_group(const struct modulated_ref *p, const double *dy, const double *rstd, int64_t group,
                                   int64_t c) {
    struct sums sums = {0, 0, 0};
    for (int64_t r = group * p->group_rows; r < (group + 1) * p->group_rows; r++) {
        const REAL normal = (REAL)p->norm.x[r * p->norm.cols + c] * (REAL)rstd[r], up = dy[r * p->norm.cols + c];
        sums.products += up * (p->norm.casting == LIGER_CAST_LLAMA ? (REAL)op_round(p->norm.types.t, normal) : normal);
        sums.normals += up * (REAL)op_round(p->norm.types.t, normal * weight_of(p, c));
        sums.upstreams += up;
    }
    if (p->norm.casting != LIGER_CAST_GEMMA) sums.normals = weight_of(p, c) * sums.products;
    return sums;
}

void modulated_ref_backward(const struct modulated_ref *p, const double *dy, const double *rstd, double *d, double *dx,
                            double *dweight, double *dscale, double *dshift) {
    const int64_t cols = p->norm.cols, groups = p->norm.rows / p->group_rows;
    for (int64_t c = 0; dweight && c < cols; c++) dweight[c] = 0;
    for (int64_t at = 0; at < groups * cols; at++) {
        const struct sums sums = column_of_group(p, dy, rstd, at / cols, at % cols);
        if (dscale) dscale[at] = sums.normals;
        if (dshift) dshift[at] = sums.upstreams;
        if (dweight) dweight[at % cols] = (REAL)dweight[at % cols] + (1 + (REAL)p->scale[at]) * sums.products;
    }
    for (int64_t i = 0; i < p->norm.rows * cols; i++)
        d[i] = (REAL)dy[i] * (1 + (REAL)p->scale[i / cols / p->group_rows * cols + i % cols]);
    rms_norm_ref_backward(&p->norm, d, NULL, rstd, dx, NULL);
}
