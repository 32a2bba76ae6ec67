/* poly_norm_naive_ref.c - the loops of poly_norm_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define poly_norm_ref_forward poly_norm_naive_forward
#define poly_norm_ref_backward poly_norm_naive_backward
#include "liger/ops/poly_norm/poly_norm_ref.c"
