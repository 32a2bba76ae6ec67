/* attn_res_naive_ref.c - the loops of attn_res_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define attn_res_forward_ref attn_res_forward_naive
#define attn_res_backward_ref attn_res_backward_naive
#include "liger/ops/attn_res/attn_res_ref.c"
