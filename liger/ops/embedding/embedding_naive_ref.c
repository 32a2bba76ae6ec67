/* embedding_naive_ref.c - the loops of embedding_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define embedding_forward_ref embedding_forward_naive
#define embedding_backward_ref embedding_backward_naive
#include "liger/ops/embedding/embedding_ref.c"
