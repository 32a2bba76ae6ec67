/* kl_div_ref.h - one element of the Kullback-Leibler divergence in double precision, and the same in f32, each operation rounded.
 * Test code. */
#ifndef LIGER_OPS_KL_DIV_REF_H
#define LIGER_OPS_KL_DIV_REF_H

#include <stdbool.h>

void kl_div_reference(bool log_target, double eps, double x, double y, double *value, double *slope);
void kl_div_naive(bool log_target, double eps, double x, double y, double *value, double *slope);

#endif
