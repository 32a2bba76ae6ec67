/* tensor.c - facts about views, and their folding into rows. */
#include "liger/core/tensor.h"

#include <string.h>

#include "liger/core/check.h"
#include "liger/core/dtype.h"
#include "liger/core/fail.h"
#include "liger/core/rows.h"

size_t liger_dtype_size(int dtype) { return dtype_size(dtype); }

const char *liger_dtype_name(int dtype) {
    switch ((liger_dtype)dtype) {
        case LIGER_F32: return "f32";
        case LIGER_F16: return "f16";
        case LIGER_BF16: return "bf16";
        case LIGER_I32: return "i32";
        case LIGER_I64: return "i64";
        case LIGER_U8: return "u8";
        case LIGER_I8: return "i8";
        case LIGER_BOOL: return "bool";
        case LIGER_DTYPE_NONE: break;
    }
    return "unknown dtype";
}

liger_tensor liger_tensor_contiguous(void *data, int dtype, int ndim, const int64_t *shape) {
    liger_tensor tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.data = data;
    tensor.dtype = dtype;
    tensor.ndim = ndim;
    int64_t stride = 1;
    for (int d = ndim - 1; d >= 0 && d < LIGER_MAX_DIMS; d--) {
        tensor.shape[d] = shape[d];
        tensor.stride[d] = stride;
        stride *= shape[d];
    }
    return tensor;
}

liger_status liger_fold_rows(const liger_tensor *tensor, const char *what, liger_rows *rows) {
    const int last = tensor->ndim - 1;
    *rows = (liger_rows){.data = tensor->data, .inner = 1};
    if (last < 0 || liger_tensor_elements(tensor) == 0) return LIGER_OK;
    LIGER_TRY(liger_check_last_contiguous(tensor, what));
    /* Walk outwards; a dimension joins the level below it when its stride continues that level. */
    int level = 0;
    int64_t extent[2] = {1, 1}, stride[2] = {0, 0};
    for (int d = last - 1; d >= 0; d--) {
        if (tensor->shape[d] == 1) continue;
        if (extent[level] == 1) {
            stride[level] = tensor->stride[d];
        } else if (tensor->stride[d] != stride[level] * extent[level]) {
            LIGER_REQUIRE(level == 0, LIGER_ERR_LAYOUT,
                          "%s: the leading dimensions need more than two row strides (dimension %d has stride %lld)",
                          what, d, (long long)tensor->stride[d]);
            level = 1;
            stride[level] = tensor->stride[d];
        }
        extent[level] *= tensor->shape[d];
    }
    LIGER_REQUIRE(level == 0 || extent[0] * extent[1] <= UINT32_MAX, LIGER_ERR_UNSUPPORTED,
                  "%s: %lld rows of two strides, but at most %lld are supported: make it contiguous", what,
                  (long long)(extent[0] * extent[1]), (long long)UINT32_MAX);
    if (level == 0 && extent[0] > UINT32_MAX) { /* in two levels, so that the usual case can count rows in 32 bits */
        level = 1;
        extent[0] = LIGER_ROWS_OF_HUGE;
        stride[1] = extent[0] * stride[0];
    }
    rows->inverse = level == 0 || extent[0] == 0 ? 0 : UINT64_MAX / (uint64_t)extent[0] + 1; /* no rows: never used */
    rows->inner = extent[0];
    rows->inner_stride = stride[0];
    rows->outer_stride = stride[1];
    return LIGER_OK;
}

static bool in_one_piece(const liger_rows *view, int64_t rows, int64_t cols) {
    return view->data == NULL || rows == 1 || (view->inner == rows && view->inner_stride == cols);
}

void liger_join_rows(int64_t *rows, int64_t *cols, liger_rows *const *views, int count) {
    for (int i = 0; i < count; i++)
        if (!in_one_piece(views[i], *rows, *cols)) return;
    *cols *= *rows;
    *rows = 1;
    for (int i = 0; i < count; i++) *views[i] = (liger_rows){.data = views[i]->data, .inner = 1};
}
