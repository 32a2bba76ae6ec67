/* jsd_problem.h - what a backend sees: flat, checked, no views. */
#ifndef LIGER_OPS_JSD_PROBLEM_H
#define LIGER_OPS_JSD_PROBLEM_H

#include "liger/core/divergences.h"
#include "liger/core/mixture.h"

struct jsd_problem {
    struct divergence_problem d;
    double beta; /* of the door: kernels take */
    struct mixture mixture;
};

#endif
