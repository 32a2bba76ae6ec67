/* logprob_naive_ref.c - the loops of logprob_ref.c in f32: the error that the library's is held to. */
#define REAL float
#define logprob_reference_forward logprob_naive_forward
#define logprob_reference_backward logprob_naive_backward
#include "liger/ops/logprob/logprob_ref.c"
