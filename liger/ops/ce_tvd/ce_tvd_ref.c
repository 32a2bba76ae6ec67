/* ce_tvd_ref.c - what the operator is: double precision, plain loops, never optimised. */
#include "liger/ops/ce_tvd/ce_tvd_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double
#endif

/* Relative to the largest: next to a huge one the logarithm of the sum would be lost. */
struct row {
    REAL max, sum;
};

static struct row sum_up(int64_t vocab, const double *x) {
    struct row row = {-INFINITY, 0};
    for (int64_t j = 0; j < vocab; j++)
        if ((REAL)x[j] > row.max) row.max = (REAL)x[j];
    for (int64_t j = 0; j < vocab; j++) row.sum += (REAL)exp((REAL)x[j] - row.max);
    return row;
}

static REAL probability(double x, struct row row) { return (REAL)exp((REAL)x - row.max) / row.sum; }

static REAL sign(REAL d) { return d > 0 ? (REAL)1 : d < 0 ? (REAL)-1 : d; }

void ce_tvd_forward_ref(const struct ce_tvd_ref *p) {
    for (int64_t r = 0; r < p->rows; r++) {
        const double *x = p->student + r * p->vocab, *t = p->teacher + r * p->vocab;
        REAL apart = 0, signs = 0;
        if (p->target[r] < 0) {
            p->ce[r] = p->tvd[r] = p->sigma[r] = 0;
            p->student_max[r] = p->student_log_sum[r] = p->teacher_max[r] = p->teacher_log_sum[r] = 0;
            continue;
        }
        const struct row of_x = sum_up(p->vocab, x), of_t = sum_up(p->vocab, t);
        for (int64_t j = 0; j < p->vocab; j++) {
            const REAL pj = probability(x[j], of_x), qj = probability(t[j], of_t);
            apart += (REAL)fabs(pj - qj);
            signs += pj * sign(pj - qj);
        }
        p->ce[r] = (of_x.max - (REAL)x[(int64_t)p->target[r]]) + (REAL)log(of_x.sum);
        p->tvd[r] = apart / 2;
        p->student_max[r] = of_x.max, p->student_log_sum[r] = (REAL)log(of_x.sum);
        p->teacher_max[r] = of_t.max, p->teacher_log_sum[r] = (REAL)log(of_t.sum);
        p->sigma[r] = signs;
    }
}

void ce_tvd_backward_ref(const struct ce_tvd_ref *p) {
    for (int64_t r = 0; r < p->rows; r++) {
        const double *x = p->student + r * p->vocab, *t = p->teacher + r * p->vocab;
        double *dx = p->dstudent + r * p->vocab;
        const REAL u = p->dce ? (REAL)p->dce[r] : 0, v = p->dtvd ? (REAL)p->dtvd[r] : 0;
        for (int64_t j = 0; j < p->vocab; j++) {
            if (p->target[r] < 0) {
                dx[j] = 0;
                continue;
            }
            const REAL pj = (REAL)exp((REAL)x[j] - (REAL)p->student_max[r] - (REAL)p->student_log_sum[r]);
            const REAL qj = (REAL)exp((REAL)t[j] - (REAL)p->teacher_max[r] - (REAL)p->teacher_log_sum[r]);
            const REAL of_ce = pj - (j == (int64_t)p->target[r] ? 1 : 0);
            const REAL of_tvd = pj * (sign(pj - qj) - (REAL)p->sigma[r]) / 2;
            dx[j] = u * of_ce + v * of_tvd;
        }
    }
}
