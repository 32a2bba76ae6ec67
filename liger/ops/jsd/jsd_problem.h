/* jsd_problem.h - what a backend sees: flat, checked, no views. */
#ifndef LIGER_OPS_JSD_PROBLEM_H
#define LIGER_OPS_JSD_PROBLEM_H

#include "liger/core/divergences.h"

struct jsd_problem {
    struct divergence_problem d;
    float beta;
};

#endif
