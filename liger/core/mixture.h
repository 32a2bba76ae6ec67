/* mixture.h - the two weights of a mixture M = beta·P + rest·Q, in f32, and how its divergence is evaluated. Internal. */
#ifndef LIGER_CORE_MIXTURE_H
#define LIGER_CORE_MIXTURE_H

#include <float.h>
#include <math.h>

/* KL(P || Q), of a beta of 0; KL(Q || P), of 1; one weight is less than MIXTURE_SKEW: that of P, that of Q; none is. */
enum mixture_mode { MIXTURE_TO_TEACHER, MIXTURE_TO_STUDENT, MIXTURE_FEW_P, MIXTURE_FEW_Q, MIXTURE_EVEN };

/* With the smaller weight s all values and slopes are about s·max(P, Q). A formula that takes the logarithm of M/max(P, Q) errs
 * by some 2^-23 of max(P, Q), which is then 2^-23/s of them: down to here 2^-17 at most. */
#define MIXTURE_SKEW 0x1p-6

struct mixture {
    float beta, rest; /* their sum is 1, also in f32 */
    /* Of log A - log B, where A has the smaller weight s: from here on s·A/B is 2^24 or more, and M/B is that. */
    float far;
    enum mixture_mode mode;
};

/* The smaller of the two keeps its digits, which 1 - beta of a rounded beta would have lost; it is 0 only if beta is 0 or 1. */
static inline struct mixture mixture_of(double beta) {
    const double exact = beta < 0.5 ? beta : 1.0 - beta;
    float small = (float)exact, far = 88.0f; /* whose exponential is finite */
    if (exact > 0 && small < FLT_MIN) small = FLT_MIN;
    if (small > 0x1p-100f) far = logf(0x1p24f / small);
    struct mixture of_p = {small, 1.0f - small, far, MIXTURE_EVEN}, of_q = {1.0f - small, small, far, MIXTURE_EVEN};
    if (exact < MIXTURE_SKEW) of_p.mode = exact > 0 ? MIXTURE_FEW_P : MIXTURE_TO_TEACHER;
    if (exact < MIXTURE_SKEW) of_q.mode = exact > 0 ? MIXTURE_FEW_Q : MIXTURE_TO_STUDENT;
    return beta < 0.5 ? of_p : of_q;
}

#endif
