/* preference_loss_problem.h - what a backend sees of a preference loss: flat, checked, no views. */
#ifndef LIGER_OPS_PREFERENCE_LOSS_PROBLEM_H
#define LIGER_OPS_PREFERENCE_LOSS_PROBLEM_H

#include <stdbool.h>

#include "liger/core/tensor.h"

/* Of one sequence, in the workspace. */
struct preference_sums {
    float log_prob, tokens; /* the sum, or the mean, over tokens that count, and how many */
    float nll, nll_tokens;  /* the sum of what nll counts, and of how many */
};

struct preference_loss_problem {
    int32_t type; /* liger_preference_type */
    bool average;
    int64_t sequences, tokens;
    int64_t terms; /* of the mean: sequence i has its loss with i + terms, or alone if terms is sequences */
    int64_t texts; /* the first sequences, of which there is nll; 0: there is none to compute */
    int64_t ignore_index;
    const float *log_prob;
    const void *target, *nll_target; /* nll_target or NULL, as all below */
    liger_dtype target_dtype, nll_target_dtype;
    const float *reference;
    const uint8_t *desirable;
    const float *kl, *upstream;
    float alpha, beta, gamma, label_smoothing, tau;
    float right, wrong; /* the weights of -log σ(d) and -log σ(-d) */
    float *loss, *nll, *sequence_log_prob, *reward;
    float *d_log_prob;            /* may be log_prob */
    struct preference_sums *sums; /* [sequences] */
};

#endif
