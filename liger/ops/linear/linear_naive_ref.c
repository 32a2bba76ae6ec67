/* linear_naive_ref.c - the loops of linear_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define linear_forward_ref linear_forward_naive
#define linear_backward_ref linear_backward_naive
#include "liger/ops/linear/linear_ref.c"
