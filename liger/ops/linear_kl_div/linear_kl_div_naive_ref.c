/* linear_kl_div_naive_ref.c - the loops of linear_kl_div_ref.c in f32: the error that the library's is held to. */
#define REAL float
#define linear_kl_div_reference linear_kl_div_naive
#include "liger/ops/linear_kl_div/linear_kl_div_ref.c"
