/* check.c - the checks of one argument that doors are made of. */
#include "liger/core/check.h"

#include <stdint.h>

#include "liger/core/overlap.h"

/* Byte counts of anything up to this many elements fit into 64 bits. */
static const int64_t most_elements = INT64_MAX / 16;

/* a·b <= most, for a and b of 0 or more; a division would cost more than all else that is asked of a size. */
static bool product_within(int64_t a, int64_t b, int64_t most) {
    int64_t product;
    return !__builtin_mul_overflow(a, b, &product) && product <= most;
}

liger_status liger_check_sizes(const liger_tensor *tensor, const char *what) {
    LIGER_REQUIRE(tensor->ndim >= 0 && tensor->ndim <= LIGER_MAX_DIMS, LIGER_ERR_SHAPE,
                  "%s has %d dimensions, but 0 to %d are supported", what, tensor->ndim, LIGER_MAX_DIMS);
    int64_t elements = 1, reach = 0;
    for (int d = 0; d < tensor->ndim; d++) {
        const int64_t size = tensor->shape[d], stride = tensor->stride[d];
        LIGER_REQUIRE(size >= 0, LIGER_ERR_SHAPE, "%s: shape[%d] is %lld, but sizes are 0 or more", what, d,
                      (long long)size);
        LIGER_REQUIRE(size <= 1 || product_within(elements, size, most_elements), LIGER_ERR_SHAPE,
                      "%s: with shape[%d] = %lld it has more than %lld elements", what, d, (long long)size,
                      (long long)most_elements);
        elements *= size > 1 ? size : 1;
        if (size <= 1) continue;
        const bool far = stride > most_elements || stride < -most_elements;
        const int64_t distance = stride < 0 ? -(far ? 0 : stride) : stride;
        LIGER_REQUIRE(!far && product_within(distance, size - 1, most_elements - reach), LIGER_ERR_LAYOUT,
                      "%s: with stride[%d] = %lld it spans more than %lld elements", what, d, (long long)stride,
                      (long long)most_elements);
        reach += distance * (size - 1);
    }
    return LIGER_OK;
}

liger_status liger_check_float(const liger_tensor *tensor, const char *what) {
    LIGER_REQUIRE(liger_is_float(tensor->dtype), LIGER_ERR_DTYPE, "%s is %s, but f32, f16 and bf16 are supported", what,
                  liger_dtype_name(tensor->dtype));
    return LIGER_OK;
}

liger_status liger_check_dtype(const liger_tensor *tensor, const char *what, int dtype) {
    LIGER_REQUIRE(tensor->dtype == dtype, LIGER_ERR_DTYPE, "%s is %s, but must be %s", what,
                  liger_dtype_name(tensor->dtype), liger_dtype_name(dtype));
    return LIGER_OK;
}

liger_status liger_check_dtype_or_f32(const liger_tensor *tensor, const char *what, int dtype) {
    LIGER_REQUIRE(tensor->dtype == dtype || tensor->dtype == LIGER_F32, LIGER_ERR_DTYPE,
                  "%s is %s, but must be %s or f32", what, liger_dtype_name(tensor->dtype), liger_dtype_name(dtype));
    return LIGER_OK;
}

liger_status liger_check_index(const liger_tensor *tensor, const char *what) {
    LIGER_REQUIRE(tensor->dtype == LIGER_I32 || tensor->dtype == LIGER_I64, LIGER_ERR_DTYPE,
                  "%s is %s, but i32 and i64 are supported", what, liger_dtype_name(tensor->dtype));
    return LIGER_OK;
}

liger_status liger_check_vector(const liger_tensor *tensor, const char *what, int64_t size) {
    LIGER_REQUIRE(tensor->ndim == 1, LIGER_ERR_SHAPE, "%s has %d dimensions, but must have 1", what, tensor->ndim);
    LIGER_REQUIRE(tensor->shape[0] == size, LIGER_ERR_SHAPE, "%s: shape[0] is %lld, but must be %lld", what,
                  (long long)tensor->shape[0], (long long)size);
    return LIGER_OK;
}

liger_status liger_check_last_contiguous(const liger_tensor *tensor, const char *what) {
    const int last = tensor->ndim - 1;
    if (liger_tensor_elements(tensor) == 0) return LIGER_OK; /* strides of nothing mean nothing */
    LIGER_REQUIRE(last < 0 || tensor->shape[last] <= 1 || tensor->stride[last] == 1, LIGER_ERR_LAYOUT,
                  "%s: the last dimension must be contiguous, but its stride is %lld and not 1", what,
                  (long long)tensor->stride[last]);
    return LIGER_OK;
}

liger_status liger_check_contiguous(const liger_tensor *tensor, const char *what) {
    int64_t expected = 1;
    if (liger_tensor_elements(tensor) == 0) return LIGER_OK;
    for (int d = tensor->ndim - 1; d >= 0; d--) {
        if (tensor->shape[d] == 1) continue;
        LIGER_REQUIRE(tensor->stride[d] == expected, LIGER_ERR_LAYOUT,
                      "%s must be contiguous, but stride[%d] is %lld and not %lld", what, d,
                      (long long)tensor->stride[d], (long long)expected);
        expected *= tensor->shape[d];
    }
    return LIGER_OK;
}

liger_status liger_check_workspace(const void *workspace, size_t bytes, size_t needed, const char *what) {
    if (needed == 0) return LIGER_OK;
    LIGER_REQUIRE(workspace != NULL && bytes >= needed, LIGER_ERR_WORKSPACE,
                  "%s: workspace has %zu bytes, but needs %zu", what, workspace ? bytes : (size_t)0, needed);
    LIGER_REQUIRE((uintptr_t)workspace % 256 == 0, LIGER_ERR_WORKSPACE,
                  "%s: workspace must be aligned to 256 bytes, but lies %d bytes past such an address", what,
                  (int)((uintptr_t)workspace % 256));
    return LIGER_OK;
}

static bool same_view(const liger_tensor *a, const liger_tensor *b) {
    if (a->data != b->data || a->dtype != b->dtype || !liger_same_shape(a, b)) return false;
    for (int d = 0; d < a->ndim; d++)
        if (a->shape[d] > 1 && a->stride[d] != b->stride[d]) return false;
    return true;
}

liger_status liger_check_overlap(const liger_tensor *out, const char *out_what, const liger_tensor *in,
                                 const char *in_name, bool same_allowed) {
    const struct byte_span written = liger_byte_span(out), read = liger_byte_span(in);
    if (!liger_spans_meet(written, read)) return LIGER_OK;
    if ((same_allowed && same_view(out, in)) || !liger_views_collide(out, in)) return LIGER_OK;
    return liger_fail(LIGER_ERR_LAYOUT, "%s overlaps %s: bytes %p-%p and %p-%p", out_what, in_name,
                      (void *)written.begin, (void *)written.end, (void *)read.begin, (void *)read.end);
}

liger_status liger_check_overlaps_itself(const liger_tensor *out, const char *what) {
    if (!liger_view_repeats(out)) return LIGER_OK;
    const struct byte_span span = liger_byte_span(out);
    return liger_fail(LIGER_ERR_LAYOUT, "%s overlaps itself: its %lld elements of %zu bytes share the bytes %p-%p",
                      what, (long long)liger_tensor_elements(out), liger_dtype_size(out->dtype), (void *)span.begin,
                      (void *)span.end);
}
