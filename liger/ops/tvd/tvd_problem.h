/* tvd_problem.h - what a backend sees: flat, checked, no views. */
#ifndef LIGER_OPS_TVD_PROBLEM_H
#define LIGER_OPS_TVD_PROBLEM_H

#include "liger/core/divergences.h"

struct tvd_problem {
    struct divergence_problem d;
};

#endif
