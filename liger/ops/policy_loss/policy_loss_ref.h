/* policy_loss_ref.h - what a policy's loss is, in double. Tests only. */
#ifndef LIGER_OPS_POLICY_LOSS_REF_H
#define LIGER_OPS_POLICY_LOSS_REF_H

#include "liger/ops/policy_loss/policy_loss.h"

struct policy_loss_ref {
    int64_t sequences, tokens, ratio_cols;
    liger_policy_loss_args args; /* its numbers */
    const double *log_prob, *mask, *advantage, *old_log_prob, *ref_log_prob, *ratio, *num_items, *upstream;
    const double *held; /* log_prob where it is held constant: differences of the loss move only the other one */
};

/* Each result may be NULL. */
void policy_loss_reference(const struct policy_loss_ref *p, double *loss, double *kl, double *clip_ratio,
                           double *d_log_prob);

/* The same loops with f32 variables: one accumulator, a rounding after each operation. */
void policy_loss_naive(const struct policy_loss_ref *p, double *loss, double *kl, double *clip_ratio,
                       double *d_log_prob);

#endif
