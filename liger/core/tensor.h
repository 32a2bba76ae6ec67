/* tensor.h - a view of memory that the caller owns.
 *
 * A liger_tensor is passed by value inside an args struct. Its layout is frozen for ever (112 bytes). Strides count
 * elements, not bytes, and may be 0 or negative where an operator says that it takes any stride. data == NULL means
 * "this argument is absent"; in a question about sizes (a workspace query) memory does not matter, and absent is what has
 * dtype NONE.
 *
 * What is written shares no byte with itself, with another argument or with the workspace, but where an operator says that
 * one argument may be the very same view as another: else LIGER_ERR_LAYOUT. So is `data` that is no multiple of the size of
 * an element. Strides of a view without elements do not matter. Fields called `reserved` are 0. */
#ifndef LIGER_CORE_TENSOR_H
#define LIGER_CORE_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#include "liger/core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum liger_dtype {
    LIGER_DTYPE_NONE = 0,
    LIGER_F32 = 1,
    LIGER_F16 = 2,  /* IEEE binary16 */
    LIGER_BF16 = 3, /* the upper half of a binary32 */
    LIGER_I32 = 4,
    LIGER_I64 = 5,
    LIGER_U8 = 6, /* bytes: workspace */
    LIGER_I8 = 7,
    LIGER_BOOL = 8 /* one byte, 0 or 1 */
} liger_dtype;

enum { LIGER_MAX_DIMS = 6 };

typedef struct liger_tensor {
    void *data;    /* first element, in the memory of the context's device; NULL = absent */
    int32_t dtype; /* liger_dtype */
    int32_t ndim;  /* 0..6; 0 is a scalar */
    int64_t shape[LIGER_MAX_DIMS];
    int64_t stride[LIGER_MAX_DIMS]; /* in elements */
} liger_tensor;

/* Size of one element in bytes; 0 for a value that is not a dtype. */
LIGER_API size_t liger_dtype_size(int dtype);
/* "f32", "bf16", ...; "unknown dtype" for any other number. */
LIGER_API const char *liger_dtype_name(int dtype);

/* Views of contiguous (row-major) memory, for callers that have no strides. */
LIGER_API liger_tensor liger_tensor_contiguous(void *data, int dtype, int ndim, const int64_t *shape);

#ifdef __cplusplus
}
#endif
#endif
