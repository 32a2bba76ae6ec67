/* check.h - the checks of one argument that doors are made of. Internal. Each names the argument and both values in its
 * message. */
#ifndef LIGER_CORE_CHECK_H
#define LIGER_CORE_CHECK_H

#include <stdbool.h>

#include "liger/core/context_state.h"
#include "liger/core/fail.h"
#include "liger/core/rows.h"

#ifdef __cplusplus
extern "C" {
#endif

static inline bool liger_is_float(int dtype) { return dtype == LIGER_F32 || dtype == LIGER_F16 || dtype == LIGER_BF16; }

/* `what` is "function: argument". 0 to 6 dimensions, sizes of 0 or more, and neither the number of elements nor the
 * distance between the first and the last overflows. */
liger_status liger_check_sizes(const liger_tensor *tensor, const char *what);
/* f32, f16 or bf16. */
liger_status liger_check_float(const liger_tensor *tensor, const char *what);
liger_status liger_check_dtype(const liger_tensor *tensor, const char *what, int dtype);
/* i32 or i64. */
liger_status liger_check_index(const liger_tensor *tensor, const char *what);
/* `dtype` or f32: parameters may be wider than activations. */
liger_status liger_check_dtype_or_f32(const liger_tensor *tensor, const char *what, int dtype);
/* One dimension of `size`. */
liger_status liger_check_vector(const liger_tensor *tensor, const char *what, int64_t size);
/* The elements of a row lie side by side. */
liger_status liger_check_last_contiguous(const liger_tensor *tensor, const char *what);
/* Every element in one piece. */
liger_status liger_check_contiguous(const liger_tensor *tensor, const char *what);
/* At least `needed` bytes, 256-byte aligned. */
liger_status liger_check_workspace(const void *workspace, size_t bytes, size_t needed, const char *what);
/* LAYOUT if an element of `out` lies on one of `in`; `same_allowed`: unless it is the very same view. Views that
 * interleave without touching, as the heads of q and k in one projection, are fine. */
liger_status liger_check_overlap(const liger_tensor *out, const char *out_what, const liger_tensor *in,
                                 const char *in_name, bool same_allowed);
/* LAYOUT if two elements of `out` share a byte, as in an expanded tensor. */
liger_status liger_check_overlaps_itself(const liger_tensor *out, const char *what);

#ifdef __cplusplus
}
#endif
#endif
