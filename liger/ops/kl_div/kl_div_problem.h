/* kl_div_problem.h - what a backend sees: flat, checked, no views. */
#ifndef LIGER_OPS_KL_DIV_PROBLEM_H
#define LIGER_OPS_KL_DIV_PROBLEM_H

#include "liger/core/divergences.h"

struct kl_div_problem {
    struct divergence_problem d;
    int32_t log_target;
    float eps;
};

#endif
