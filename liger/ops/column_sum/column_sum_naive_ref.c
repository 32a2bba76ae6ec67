/* column_sum_naive_ref.c - the loops of column_sum_ref.c in f32: the error that a kernel's is held to. */
#define REAL float
#define column_sum_reference column_sum_naive
#include "liger/ops/column_sum/column_sum_ref.c"
