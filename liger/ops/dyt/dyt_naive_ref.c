/* dyt_naive_ref.c - the loops of dyt_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define dyt_ref_forward dyt_naive_forward
#define dyt_ref_backward dyt_naive_backward
#include "liger/ops/dyt/dyt_ref.c"
