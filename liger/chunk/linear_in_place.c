/* linear_in_place.c - see linear_in_place.h. */
#include "liger/chunk/linear_in_place.h"

#include "liger/core/fail.h"
#include "liger/cpu/interleave.h"

/* A slice is copied once, and its product is a little faster the more columns it has. A vocabulary whose number has no divisor
 * for slices of such a size is left to chunks of rows. */
enum { SLICE_BYTES = 16 << 20, LEAST_COLS = 256, CACHE_BYTES = 28 << 20 };

int64_t linear_in_place_slices(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden,
                               int64_t vocab) {
    const int64_t values = SLICE_BYTES / (int64_t)liger_dtype_size(dtype);
    if (context->device != LIGER_DEVICE_CPU || rows == 0 || rows > hidden) return 0;
    const int64_t most_cols = values / rows;
    for (int64_t slices = 1; vocab / slices >= LEAST_COLS || slices == 1; slices++)
        if (vocab % slices == 0 && vocab / slices <= most_cols) return slices;
    return 0;
}

bool linear_in_place_pays(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t vocab) {
    const int64_t values = CACHE_BYTES / (int64_t)liger_dtype_size(dtype);
    return linear_budget(context) == 0 && rows > 0 && vocab > values / rows;
}

static size_t slice_bytes(liger_dtype dtype, int64_t rows, int64_t vocab, int64_t slices) {
    return (size_t)(rows * (vocab / slices)) * liger_dtype_size(dtype);
}

size_t linear_in_place_workspace(liger_dtype dtype, int64_t rows, int64_t vocab, int64_t slices) {
    return (slice_bytes(dtype, rows, vocab, slices) + 255) / 256 * 256;
}

liger_status linear_in_place_dweight(liger_context *context, const struct linear_head *head, int64_t rows,
                                     struct linear_result dweight, int64_t slices, void *scratch, liger_stream stream) {
    const size_t bytes = slice_bytes(head->dtype, rows, head->vocab, slices);
    const int64_t cols = head->vocab / slices;
    struct linear_head of_slice = *head;
    of_slice.logits = scratch, of_slice.logits_stride = cols;
    LIGER_TRY(cpu_interleave(context, head->logits, rows, slices, bytes / (size_t)rows));
    for (int64_t slice = slices - 1; slice >= 0; slice--) {
        const struct linear_part part = {0, rows, slice * cols, cols};
        cpu_copy(context, scratch, (const char *)head->logits + (size_t)slice * bytes, bytes);
        LIGER_TRY(linear_head_dweight(context, &of_slice, &part, dweight, stream));
    }
    return LIGER_OK;
}
