/* preference_loss_ref.h - what the preference losses are, in double. Tests only. */
#ifndef LIGER_OPS_PREFERENCE_LOSS_REF_H
#define LIGER_OPS_PREFERENCE_LOSS_REF_H

#include <stdbool.h>
#include <stdint.h>

struct preference_loss_ref {
    int type; /* liger_preference_type */
    bool average;
    int64_t sequences, tokens;
    double ignore_index, alpha, beta, gamma, label_smoothing, tau;
    const double *log_prob, *target, *nll_target, *reference, *desirable, *kl, *upstream; /* NULL: absent */
};

/* Each result may be NULL. */
void preference_loss_reference(const struct preference_loss_ref *p, double *loss, double *nll,
                               double *sequence_log_prob, double *reward, double *d_log_prob);

/* The same loops with f32 variables: a rounding after each operation. */
void preference_loss_naive(const struct preference_loss_ref *p, double *loss, double *nll, double *sequence_log_prob,
                           double *reward, double *d_log_prob);

#endif
