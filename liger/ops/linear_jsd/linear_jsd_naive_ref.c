/* linear_jsd_naive_ref.c - the loops of linear_jsd_ref.c in f32: the error that the library's is held to. */
#define REAL float
#define linear_jsd_reference linear_jsd_naive
#define jsd_reference jsd_naive
#include "liger/ops/linear_jsd/linear_jsd_ref.c"
