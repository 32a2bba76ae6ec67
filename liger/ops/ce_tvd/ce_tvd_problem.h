/* ce_tvd_problem.h - what a backend sees: flat, checked, no views. Targets are checked by the CPU's kernels. */
#ifndef LIGER_OPS_CE_TVD_PROBLEM_H
#define LIGER_OPS_CE_TVD_PROBLEM_H

#include "liger/core/rows.h"

struct ce_tvd_forward_problem {
    liger_dtype dtype, target_dtype;
    int64_t rows, cols; /* both 1 or more */
    liger_rows student, teacher;
    const void *target;
    int64_t ignore_index;
    float *ce, *tvd, *student_max, *student_log_sum, *teacher_max, *teacher_log_sum, *sigma; /* [rows] */
    liger_rows dstudent; /* memory for backward's gradient, or NULL: a kernel may leave signs in it */
    int32_t *has_signs;  /* [rows]: of which rows it has; with dstudent */
};

/* The gradient may be written over either of the logits, but not with signs in it. */
struct ce_tvd_backward_problem {
    liger_dtype dtype, target_dtype;
    int64_t rows, cols;
    liger_rows student, teacher, dstudent;
    const void *target;
    int64_t ignore_index;
    const float *student_max, *student_log_sum, *teacher_max, *teacher_log_sum, *sigma; /* [rows] */
    const float *dce, *dtvd;                                                            /* [rows], or NULL */
    const int32_t *has_signs; /* [rows]: dstudent's row is as forward has left it; NULL: none is */
};

/* The gradient of an element is p times one of these, by the sign of p - q; at the target, less `hit`. */
struct ce_tvd_factors {
    float above, below, equal, hit;
};

LIGER_HOST_DEVICE static inline struct ce_tvd_factors ce_tvd_factors_of(const struct ce_tvd_backward_problem *p,
                                                                        int64_t r) {
    struct ce_tvd_factors f = {0.0f, 0.0f, 0.0f, 0.0f};
    if (p->dce) f.above = f.below = f.equal = f.hit = p->dce[r];
    if (p->dtvd) {
        const float half = 0.5f * p->dtvd[r], sigma = p->sigma[r];
        f.above += half * (1.0f - sigma);
        f.below += half * (-1.0f - sigma);
        f.equal -= half * sigma;
    }
    return f;
}

#endif
