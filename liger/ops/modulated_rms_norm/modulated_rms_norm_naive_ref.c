/* modulated_rms_norm_naive_ref.c - the loops of modulated_rms_norm_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define rms_norm_ref_forward rms_norm_naive_forward
#define rms_norm_ref_backward rms_norm_naive_backward
#define modulated_ref_forward modulated_naive_forward
#define modulated_ref_backward modulated_naive_backward
#include "liger/ops/modulated_rms_norm/modulated_rms_norm_ref.c"
