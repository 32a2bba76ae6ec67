/* overlap.h - where the bytes of a view lie, and whether two views share one. Internal. */
#ifndef LIGER_CORE_OVERLAP_H
#define LIGER_CORE_OVERLAP_H

#include <stdbool.h>
#include <stdint.h>

#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* From the first byte that a view touches to one past the last. */
struct byte_span {
    uintptr_t begin, end;
};
struct byte_span liger_byte_span(const liger_tensor *tensor);

/* False only if no byte belongs to both. True if one does, or if finding out would take too long: that needs strides
 * which nest neither in each other nor in those of the other view. For views with elements and checked sizes. */
bool liger_views_collide(const liger_tensor *a, const liger_tensor *b);

#ifdef __cplusplus
}
#endif
#endif
