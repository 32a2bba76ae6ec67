/* sparsemax_naive_ref.c - the loops of sparsemax_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define sparsemax_forward_ref sparsemax_forward_naive
#define sparsemax_backward_ref sparsemax_backward_naive
#include "liger/ops/sparsemax/sparsemax_ref.c"
