/* kl_div_naive_ref.c - the formula of kl_div_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define kl_div_reference kl_div_naive
#include "liger/ops/kl_div/kl_div_ref.c"
