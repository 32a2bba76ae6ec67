/* mixture.h - the two weights of a mixture M = beta·P + rest·Q, in f32. Internal. */
#ifndef LIGER_CORE_MIXTURE_H
#define LIGER_CORE_MIXTURE_H

#include <float.h>

struct mixture {
    float beta, rest; /* their sum is 1, also in f32 */
};

/* The smaller of the two keeps its digits, which 1 - beta of a rounded beta would have lost; it is 0 only if beta is 0 or 1. */
static inline struct mixture mixture_of(double beta) {
    const double exact = beta < 0.5 ? beta : 1.0 - beta;
    float small = (float)exact;
    if (exact > 0 && small < FLT_MIN) small = FLT_MIN;
    const float large = 1.0f - small;
    const struct mixture of = {beta < 0.5 ? small : large, beta < 0.5 ? large : small};
    return of;
}

#endif
