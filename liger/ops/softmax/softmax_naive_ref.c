/* softmax_naive_ref.c - the loops of softmax_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define softmax_forward_ref softmax_forward_naive
#define softmax_backward_ref softmax_backward_naive
#include "liger/ops/softmax/softmax_ref.c"
