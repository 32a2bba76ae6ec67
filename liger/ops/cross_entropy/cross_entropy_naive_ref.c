/* cross_entropy_naive_ref.c - the loops of cross_entropy_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define cross_entropy_reference cross_entropy_naive
#include "liger/ops/cross_entropy/cross_entropy_ref.c"
