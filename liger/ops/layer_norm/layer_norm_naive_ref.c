/* layer_norm_naive_ref.c - the loops of layer_norm_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define layer_norm_ref_forward layer_norm_naive_forward
#define layer_norm_ref_backward layer_norm_naive_backward
#include "liger/ops/layer_norm/layer_norm_ref.c"
