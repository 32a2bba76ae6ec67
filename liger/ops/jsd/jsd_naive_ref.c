/* jsd_naive_ref.c - the formula of jsd_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define jsd_reference jsd_naive
#include "liger/ops/jsd/jsd_ref.c"
