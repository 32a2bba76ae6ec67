/* tvd_naive_ref.c - the formula of tvd_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define tvd_reference tvd_naive
#include "liger/ops/tvd/tvd_ref.c"
