/* linear_in_place.c - see linear_in_place.h. */
#include "liger/chunk/linear_in_place.h"

#include "liger/core/fail.h"
#include "liger/ops/interleave/interleave_problem.h"
#include "liger/ops/row_selection/row_selection_problem.h"

/* A slice is copied once, and its product is a little faster the more columns it has. A vocabulary whose number has no divisor
 * for slices of such a size is left to chunks of rows; so are rows so many that finding the order of their parts takes much. */
enum { SLICE_BYTES = 16 << 20, LEAST_COLS = 256, CACHE_BYTES = 28 << 20, MOST_PARTS = 1 << 20 };

int64_t linear_in_place_slices(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden,
                               int64_t vocab) {
    const int64_t values = SLICE_BYTES / (int64_t)liger_dtype_size(dtype);
    if (context->device != LIGER_DEVICE_CPU || rows == 0 || rows > hidden) return 0;
    const int64_t most_cols = values / rows;
    for (int64_t slices = 1; vocab / slices >= LEAST_COLS || slices == 1; slices++)
        if (vocab % slices == 0 && vocab / slices <= most_cols) return slices <= MOST_PARTS / rows ? slices : 0;
    return 0;
}

bool linear_in_place_pays(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t vocab) {
    const int64_t values = CACHE_BYTES / (int64_t)liger_dtype_size(dtype);
    return linear_budget(context) == 0 && rows > 0 && vocab > values / rows;
}

size_t linear_in_place_workspace(liger_dtype dtype, int64_t rows, int64_t vocab, int64_t slices) {
    return ((size_t)(rows * (vocab / slices)) * liger_dtype_size(dtype) + 255) / 256 * 256;
}

/* The gradients of slice `which` of all rows, which lie together. */
static liger_status copy_out(liger_context *context, const struct linear_head *slice, const void *gradients,
                             int64_t rows, int64_t which, liger_stream stream) {
    const int64_t cols = slice->logits_stride;
    const struct row_scatter_problem copy = {
        .x_dtype = slice->dtype,
        .y_dtype = slice->dtype,
        .rows = rows,
        .cols = cols,
        .x = (const char *)gradients + (size_t)(which * rows * cols) * liger_dtype_size(slice->dtype),
        .x_stride = cols,
        .y = slice->logits,
        .y_stride = cols,
    };
    return context->kernels->row_scatter(context, &copy, stream);
}

liger_status linear_in_place_dweight(liger_context *context, const struct linear_head *head, int64_t rows,
                                     struct linear_result dweight, int64_t slices, void *scratch, liger_stream stream) {
    const int64_t cols = head->vocab / slices;
    const struct interleave_problem order = {head->dtype, head->logits, rows, slices, cols};
    struct linear_head slice = *head;
    slice.logits = scratch, slice.logits_stride = cols;
    LIGER_TRY(context->kernels->interleave(context, &order, stream));
    for (int64_t which = slices - 1; which >= 0; which--) {
        const struct linear_part part = {0, rows, which * cols, cols};
        LIGER_TRY(copy_out(context, &slice, head->logits, rows, which, stream));
        LIGER_TRY(linear_head_dweight(context, &slice, &part, dweight, stream));
    }
    return LIGER_OK;
}
