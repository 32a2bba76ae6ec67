/* group_norm_naive_ref.c - the loops of group_norm_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define group_norm_ref_forward group_norm_naive_forward
#define group_norm_ref_backward group_norm_naive_backward
#include "liger/ops/group_norm/group_norm_ref.c"
