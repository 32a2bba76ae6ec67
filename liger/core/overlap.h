/* overlap.h - where the bytes of a view lie, and whether two views, or two elements of one, share one. Internal. */
#ifndef LIGER_CORE_OVERLAP_H
#define LIGER_CORE_OVERLAP_H

#include <stdbool.h>
#include <stdint.h>

#include "liger/core/dtype.h"

/* From the first byte that a view touches to one past the last; both 0 if it touches none. Inline, because a door asks for
 * every pair of its arguments, and nearly all of them lie apart. */
struct byte_span {
    uintptr_t begin, end;
};
static inline struct byte_span liger_byte_span(const liger_tensor *tensor) {
    const struct byte_span none = {0, 0};
    int64_t low = 0, high = 0;
    if (tensor->data == NULL) return none;
    for (int d = 0; d < tensor->ndim; d++) {
        if (tensor->shape[d] == 0) return none;
        const int64_t reach = (tensor->shape[d] - 1) * tensor->stride[d];
        if (reach < 0) low += reach;
        else high += reach;
    }
    const int64_t size = (int64_t)dtype_size(tensor->dtype);
    const struct byte_span span = {(uintptr_t)tensor->data + (uintptr_t)(low * size),
                                   (uintptr_t)tensor->data + (uintptr_t)((high + 1) * size)};
    return span;
}
static inline bool liger_spans_meet(struct byte_span a, struct byte_span b) {
    return a.begin < b.end && b.begin < a.end;
}

#ifdef __cplusplus
extern "C" {
#endif

/* False only if no byte belongs to both. True if one does, or if finding out would take too long: that needs strides
 * which nest neither in each other nor in those of the other view. For views of checked sizes. */
bool liger_views_collide(const liger_tensor *a, const liger_tensor *b);
/* The same of two elements of one view; quick where strides nest. */
bool liger_view_repeats(const liger_tensor *view);

#ifdef __cplusplus
}
#endif
#endif
