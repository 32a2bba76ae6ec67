/* ce_tvd_ref.c - what the operator is: double precision, plain loops, never optimised. */
#include "liger/ops/ce_tvd/ce_tvd_ref.h"

#include <math.h>

#ifndef REAL
#define REAL double
#endif
#include "tests/harness/row_softmax.h"

static REAL probability(double x, struct row_softmax row) { return (REAL)exp((REAL)x - row.max) / row.sum; }

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
        const struct row_softmax of_x = row_softmax(x, p->vocab, 1), of_t = row_softmax(t, p->vocab, 1);
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
