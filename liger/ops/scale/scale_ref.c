/* scale_ref.c - what scale is: one loop. */
#include "liger/ops/scale/scale_ref.h"

void scale_reference(const struct scale_ref *p) {
    for (int64_t i = 0; i < p->count; i++) {
        const bool ignored = p->target && p->target[i / (p->count / p->rows)] == p->ignore_index;
        p->y[i] = ignored && p->x[i] == 0 ? 0 : p->x[i] * (p->scale ? *p->scale : 1.0);
    }
}
