/* linear_cross_entropy_naive_ref.c - the loops of linear_cross_entropy_ref.c in f32: the error that the library's is held
 * to. */
#define REAL float
#define linear_cross_entropy_reference linear_cross_entropy_naive
#define cross_entropy_reference cross_entropy_naive
#include "liger/ops/linear_cross_entropy/linear_cross_entropy_ref.c"
