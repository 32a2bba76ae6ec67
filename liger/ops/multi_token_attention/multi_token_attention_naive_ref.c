/* multi_token_attention_naive_ref.c - the loops of multi_token_attention_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define mta_ref_statistics mta_naive_statistics
#define mta_ref_probability mta_naive_probability
#define mta_ref_forward mta_naive_forward
#define mta_ref_backward mta_naive_backward
#define mta_ref_transposed mta_naive_transposed
#include "liger/ops/multi_token_attention/multi_token_attention_ref.c"
