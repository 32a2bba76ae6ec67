/* policy_loss_naive_ref.c - the loops of policy_loss_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define policy_loss_reference policy_loss_naive
#include "liger/ops/policy_loss/policy_loss_ref.c"
