/* check.h - the checks that every door repeats. Internal. Each names the argument and both values in its message. */
#ifndef LIGER_CORE_CHECK_H
#define LIGER_CORE_CHECK_H

#include <stdbool.h>

#include "liger/core/context_state.h"
#include "liger/core/fail.h"
#include "liger/core/rows.h"

#ifdef __cplusplus
extern "C" {
#endif

/* "function: argument", for functions that share their checks. */
struct liger_name {
    char text[80];
};
const char *liger_name_of(struct liger_name *name, const char *function, const char *argument);

static inline bool liger_is_float(int dtype) { return dtype == LIGER_F32 || dtype == LIGER_F16 || dtype == LIGER_BF16; }

/* `what` is "function: argument". 0 to 6 dimensions, sizes of 0 or more, and neither the number of elements nor the
 * distance between the first and the last overflows. For a size query, whose tensors may have no data yet. */
liger_status liger_check_sizes(const liger_tensor *tensor, const char *what);
/* That, and there is data (or nothing to point to). */
liger_status liger_check_present(const liger_tensor *tensor, const char *what);
/* f32, f16 or bf16. */
liger_status liger_check_float(const liger_tensor *tensor, const char *what);
liger_status liger_check_dtype(const liger_tensor *tensor, const char *what, int dtype);
/* i32 or i64. */
liger_status liger_check_index(const liger_tensor *tensor, const char *what);
/* `dtype` or f32: parameters may be wider than activations. */
liger_status liger_check_dtype_or_f32(const liger_tensor *tensor, const char *what, int dtype);
/* Same rank and sizes as `other`, which the message calls `other_name`. */
liger_status liger_check_same_shape(const liger_tensor *tensor, const char *what, const liger_tensor *other,
                                    const char *other_name);
/* One dimension of `size`, contiguous. */
liger_status liger_check_vector(const liger_tensor *tensor, const char *what, int64_t size);
/* Absent, or such a vector of `dtype`. */
liger_status liger_check_optional_vector(const liger_tensor *tensor, const char *what, int dtype, int64_t size);
/* The elements of a row lie side by side. */
liger_status liger_check_last_contiguous(const liger_tensor *tensor, const char *what);
/* Every element in one piece. */
liger_status liger_check_contiguous(const liger_tensor *tensor, const char *what);
/* The dtype and shape of `other`, lowered to rows. */
liger_status liger_lower_twin(const liger_tensor *tensor, const char *what, const liger_tensor *other,
                              const char *other_name, liger_rows *rows);
/* At least `needed` bytes, 256-byte aligned. */
liger_status liger_check_workspace(const void *workspace, size_t bytes, size_t needed, const char *what);
/* LAYOUT if an element of `out` lies on one of `in`; `same_allowed`: unless it is the very same view. Views that
 * interleave without touching, as the heads of q and k in one projection, are fine. */
liger_status liger_check_overlap(const liger_tensor *out, const char *out_what, const liger_tensor *in,
                                 const char *in_name, bool same_allowed);
/* LAYOUT if two elements of `out` share a byte, as in an expanded tensor. */
liger_status liger_check_overlaps_itself(const liger_tensor *out, const char *what);
/* An argument and its name. */
struct liger_argument {
    const liger_tensor *tensor;
    const char *name;
};
/* LAYOUT if one of `outputs` lies on one of `inputs` or on another output: none may be in place. */
liger_status liger_check_apart(const char *function, const struct liger_argument *outputs, int output_count,
                               const struct liger_argument *inputs, int input_count);

#ifdef __cplusplus
}
#endif
#endif
