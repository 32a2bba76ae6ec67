/* jsd_ref.h - one element of the generalized Jensen-Shannon divergence in double precision, and the same in f32, each operation rounded.
 * Test code. */
#ifndef LIGER_OPS_JSD_REF_H
#define LIGER_OPS_JSD_REF_H

#include <stdbool.h>

/* log Q - log M and log P - log M, of a mixture of both. */
struct jsd_above {
    double q, p;
};
void jsd_reference(double beta, double x, double y, double *value, double *slope);
void jsd_naive(double beta, double x, double y, double *value, double *slope);

#endif
