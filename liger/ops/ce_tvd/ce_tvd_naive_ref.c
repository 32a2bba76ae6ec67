/* ce_tvd_naive_ref.c - the loops of ce_tvd_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define ce_tvd_forward_ref ce_tvd_forward_naive
#define ce_tvd_backward_ref ce_tvd_backward_naive
#include "liger/ops/ce_tvd/ce_tvd_ref.c"
