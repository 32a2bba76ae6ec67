/* linear_topk_kl_naive_ref.c - the loops of linear_topk_kl_ref.c in f32: the error that the library's is held to. */
#define REAL float
#define linear_topk_kl_reference linear_topk_kl_naive
#include "liger/ops/linear_topk_kl/linear_topk_kl_ref.c"
