/* gemm_naive_ref.c - the loops of gemm_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define gemm_ref gemm_naive
#include "liger/ops/gemm/gemm_ref.c"
