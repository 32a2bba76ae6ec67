/* ce_tvd_ref.h - the double-precision reference of ce_tvd, and the same loops in f32, for its cases. Test code. */
#ifndef LIGER_OPS_CE_TVD_REF_H
#define LIGER_OPS_CE_TVD_REF_H

#include <stdint.h>

struct ce_tvd_ref {
    int64_t rows, vocab;
    const double *student, *teacher, *target; /* a target below 0 is ignored */
    const double *dce, *dtvd;                 /* [rows], or NULL */
    double *ce, *tvd, *student_max, *student_log_sum, *teacher_max, *teacher_log_sum, *sigma;
    double *dstudent;
};

/* Results from the logits. */
void ce_tvd_forward_ref(const struct ce_tvd_ref *p);
void ce_tvd_forward_naive(const struct ce_tvd_ref *p);
/* The gradient, from the logits and what forward has found. */
void ce_tvd_backward_ref(const struct ce_tvd_ref *p);

#endif
