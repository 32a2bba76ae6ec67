/* scale_ref.h - scale in double precision. */
#ifndef LIGER_OPS_SCALE_REF_H
#define LIGER_OPS_SCALE_REF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct scale_ref {
    int64_t count, rows, ignore_index;
    const double *x, *scale, *target; /* scale and target may be NULL */
    double *y;
};

void scale_reference(const struct scale_ref *p);

#endif
