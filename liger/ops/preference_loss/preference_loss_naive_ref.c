/* preference_loss_naive_ref.c - the reference's loops in f32: see preference_loss_ref.c. */
#define REAL float
#define preference_loss_reference preference_loss_naive
#include "liger/ops/preference_loss/preference_loss_ref.c"
