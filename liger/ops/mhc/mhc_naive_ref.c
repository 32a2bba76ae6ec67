/* mhc_naive_ref.c - the loops of mhc_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define mhc_coeffs_forward_ref mhc_coeffs_forward_naive
#define mhc_coeffs_backward_ref mhc_coeffs_backward_naive
#define mhc_pre_forward_ref mhc_pre_forward_naive
#define mhc_pre_backward_ref mhc_pre_backward_naive
#define mhc_post_res_forward_ref mhc_post_res_forward_naive
#define mhc_post_res_backward_ref mhc_post_res_backward_naive
#include "liger/ops/mhc/mhc_ref.c"
