/* rope_ref.h - the double-precision reference of RoPE, for its cases. Test code. */
#ifndef LIGER_OPS_ROPE_REF_H
#define LIGER_OPS_ROPE_REF_H

#include <stdbool.h>
#include <stdint.h>

#include "liger/core/tensor.h"

struct rope_ref {
    int64_t batch, heads, seq, dim, half;
    int64_t table_batch; /* 1: the angles serve every batch */
    int64_t cos_cols, sin_cols;
    int64_t temporal, height; /* columns with angles in planes 0 and 1; the rest in plane 2 */
    int64_t plane_rows;       /* from one plane of cos or sin to the next; 0: there is one plane */
    liger_dtype operand;      /* NONE: not rounded after the load */
    bool inverse;
};

/* x, y [batch, heads, seq, dim]; cos, sin [planes, table_batch, seq, cos_cols or sin_cols]; all in one piece. */
void rope_ref(const struct rope_ref *r, const double *x, const double *cos, const double *sin, double *y);

#endif
