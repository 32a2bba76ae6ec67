/* linear_logprob_naive_ref.c - the loops of linear_logprob_ref.c in f32: the error that the library's is held to. */
#define REAL float
#define linear_logprob_reference_forward linear_logprob_naive_forward
#define linear_logprob_reference_backward linear_logprob_naive_backward
#define logprob_reference_forward logprob_naive_forward
#define logprob_reference_backward logprob_naive_backward
#include "liger/ops/linear_logprob/linear_logprob_ref.c"
