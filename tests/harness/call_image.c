/* call_image.c - see call_image.h. */
#include "tests/harness/call_image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/harness/float_formats.h"

liger_dtype op_tensor_dtype(const struct tensor_spec *spec, struct op_types types) {
    switch (spec->kind) {
        case KIND_T: return types.t;
        case KIND_WEIGHT: return types.weight;
        case KIND_INDEX: return types.index;
        case KIND_I64: return LIGER_I64;
        case KIND_I32: return LIGER_I32;
        case KIND_I8: return LIGER_I8;
        case KIND_U8: return LIGER_U8;
        case KIND_BOOL: return LIGER_BOOL;
        default: return LIGER_F32;
    }
}

int64_t op_tensor_count(const struct tensor_spec *spec) {
    int64_t count = 1;
    for (int d = 0; d < spec->ndim; d++) count *= spec->shape[d];
    return count;
}

/* ---- layout ---- */

static int memory_order(const struct tensor_spec *spec, int position) {
    bool natural = true;
    for (int d = 0; d < spec->ndim; d++) natural = natural && spec->order[d] == 0;
    return natural ? position : spec->order[position];
}

int64_t op_tensor_layout(const struct tensor_spec *spec, enum spacing spacing, int64_t *stride) {
    static const int64_t gaps[4][2] = {{0, 0}, {3, 5}, {64, 128}, {0, 0}};
    int64_t step = 1, span = 1;
    for (int position = spec->ndim - 1; position >= 0; position--) {
        const int level = spec->ndim - 1 - position;
        if (spec->gaps && (level == 1 || level == 2)) step += gaps[spacing][level - 1];
        const int d = memory_order(spec, position);
        stride[d] = step;
        span += (spec->shape[d] - 1) * step;
        step *= spec->shape[d] > 0 ? spec->shape[d] : 1;
    }
    return op_tensor_count(spec) == 0 ? 0 : span;
}

/* Steps through a view in row-major order, by runs of elements that lie side by side. */
struct walk {
    const struct tensor_spec *spec;
    const int64_t *stride;
    int64_t index[LIGER_MAX_DIMS], offset;
    int outer;      /* dimensions outside of a run */
    int64_t length; /* of a run */
};

static struct walk walk_begin(const struct tensor_spec *spec, const int64_t *stride) {
    struct walk walk = {.spec = spec, .stride = stride, .outer = spec->ndim, .length = 1};
    while (walk.outer > 0 && stride[walk.outer - 1] == walk.length) walk.length *= spec->shape[--walk.outer];
    return walk;
}

static void walk_next(struct walk *walk) {
    for (int d = walk->outer - 1; d >= 0; d--) {
        walk->offset += walk->stride[d];
        if (++walk->index[d] < walk->spec->shape[d]) return;
        walk->offset -= walk->index[d] * walk->stride[d];
        walk->index[d] = 0;
    }
}

/* ---- making ---- */

static bool complain(struct call_image *image, const char *what, const char *name) {
    snprintf(image->text, sizeof image->text, "%s (%s)", what, name);
    return false;
}

void op_tensor_store(const struct tensor_spec *spec, liger_dtype dtype, const int64_t *stride, const double *values,
                     void *data) {
    struct walk walk = walk_begin(spec, stride);
    const int64_t count = op_tensor_count(spec), size = (int64_t)liger_dtype_size(dtype);
    for (int64_t i = 0; i < count; i += walk.length, walk_next(&walk))
        format_store_all(dtype, (unsigned char *)data + walk.offset * size, values + i, walk.length);
}

static bool keep_before(struct call_image *image, struct tensor_image *tensor, const char *name) {
    tensor->before = malloc(tensor->buffer.region_bytes);
    if (tensor->before == NULL) return complain(image, "no memory", name);
    memcpy(tensor->before, tensor->buffer.region, tensor->buffer.region_bytes);
    if (device_is_host(image->context)) return true;
    tensor->device = device_allocate(image->context, tensor->buffer.region_bytes);
    return tensor->device != NULL || complain(image, "no device memory", name);
}

static void *address(const struct call_image *image, const struct guard_buffer *buffer, void *device) {
    return device_is_host(image->context) ? buffer->data : (unsigned char *)device + (buffer->data - buffer->region);
}

/* In elements. ASKEW: every residue of 16 bytes occurs, whatever the size of an element. */
static size_t shift_of(enum spacing spacing, int tensor) {
    if (spacing == SPACING_ASKEW) return (size_t)(tensor * 3) % 16;
    return spacing == SPACING_ODD ? 1 : 0;
}

static bool make_tensor(struct call_image *image, int i, enum placement place, enum spacing spacing) {
    const struct op_run *run = image->run;
    const struct tensor_spec *spec = &run->spec[i];
    struct tensor_image *tensor = &image->tensor[i];
    const liger_dtype dtype = op_tensor_dtype(spec, run->types);
    const size_t size = liger_dtype_size(dtype);
    const int64_t span = op_tensor_layout(spec, spacing, tensor->stride);
    if (tensor->same_as < 0) {
        const size_t shift = shift_of(spacing, i) * size;
        if (!guard_buffer_make(&tensor->buffer, (size_t)span * size, place == PLACE_MIDDLE ? 256 : size, shift, place))
            return complain(image, "no memory", spec->name);
        if (spec->role != ROLE_OUT) op_tensor_store(spec, dtype, tensor->stride, run->t[i], tensor->buffer.data);
        if (!keep_before(image, tensor, spec->name)) return false;
    }
    const struct tensor_image *owner = tensor->same_as < 0 ? tensor : &image->tensor[tensor->same_as];
    liger_tensor *view = &image->call.t[i];
    view->data = address(image, &owner->buffer, owner->device);
    view->dtype = (int32_t)dtype;
    view->ndim = spec->ndim;
    memcpy(view->shape, spec->shape, sizeof view->shape);
    memcpy(view->stride, tensor->stride, sizeof view->stride);
    return true;
}

static bool make_workspace(struct call_image *image, enum placement place) {
    size_t bytes = 0;
    if (image->run->op->workspace == NULL) return true;
    const liger_status status = image->run->op->workspace(image->context, &image->call, &bytes);
    if (status != LIGER_OK) {
        snprintf(image->text, sizeof image->text, "the workspace query says %s: %s", liger_status_name(status),
                 liger_last_error());
        return false;
    }
    if (bytes == 0) return true;
    if (!guard_buffer_make(&image->workspace, bytes, 256, 0, place)) return complain(image, "no memory", "workspace");
    if (!device_is_host(image->context)) {
        image->device_workspace = device_allocate(image->context, image->workspace.region_bytes);
        if (image->device_workspace == NULL) return complain(image, "no device memory", "workspace");
    }
    image->call.workspace = address(image, &image->workspace, image->device_workspace);
    image->call.workspace_bytes = bytes;
    return true;
}

bool call_image_make(struct call_image *image, struct op_run *run, enum placement place, enum spacing spacing,
                     const int *same_as) {
    memset(image, 0, sizeof *image);
    image->run = run;
    image->context = run->context;
    image->call.c = run->c;
    for (int i = 0; i < run->op->tensor_count; i++) image->tensor[i].same_as = same_as ? same_as[i] : -1;
    for (int pass = 0; pass < 2; pass++) /* owners first */
        for (int i = 0; i < run->op->tensor_count; i++)
            if (run->t[i] != NULL && (image->tensor[i].same_as >= 0) == (pass == 1) &&
                !make_tensor(image, i, place, spacing))
                return false;
    return make_workspace(image, place);
}

void call_image_free(struct call_image *image) {
    for (int i = 0; i < OP_MAX_TENSORS; i++) {
        guard_buffer_free(&image->tensor[i].buffer);
        free(image->tensor[i].before);
        if (image->tensor[i].device != NULL) device_release(image->context, image->tensor[i].device);
    }
    guard_buffer_free(&image->workspace);
    if (image->device_workspace != NULL) device_release(image->context, image->device_workspace);
    memset(image->tensor, 0, sizeof image->tensor);
    image->device_workspace = NULL;
}

/* ---- the call ---- */

static bool move(struct call_image *image, bool up) {
    bool fine = true;
    for (int i = 0; i < OP_MAX_TENSORS; i++) {
        struct tensor_image *t = &image->tensor[i];
        if (t->device == NULL) continue;
        fine = fine && (up ? device_upload(image->context, t->device, t->buffer.region, t->buffer.region_bytes)
                           : device_download(image->context, t->buffer.region, t->device, t->buffer.region_bytes));
    }
    struct guard_buffer *w = &image->workspace;
    if (image->device_workspace == NULL) return fine;
    return fine && (up ? device_upload(image->context, image->device_workspace, w->region, w->region_bytes)
                       : device_download(image->context, w->region, image->device_workspace, w->region_bytes));
}

liger_status call_image_invoke(struct call_image *image, liger_stream stream) {
    image->text[0] = 0;
    /* A copy from pageable memory may still be under way, and only the default stream would wait for it. */
    if (!move(image, true) || device_synchronize(image->context) != NULL)
        complain(image, "copying to the device failed", image->run->op->name);
    const liger_status status = image->run->op->call(image->context, &image->call, stream);
    const char *wrong = device_synchronize(image->context);
    if (wrong != NULL) complain(image, wrong, image->run->op->name);
    if (!move(image, false)) complain(image, "copying from the device failed", image->run->op->name);
    return status;
}

/* ---- the call on a stream that is held ---- */

enum { NOT_YET = 0xff }; /* what a tensor's region is full of before its content arrives: NaN, or -1 */

/* Behind the hold, each tensor's region gets its content from a copy on the device. */
static bool arrive_on(struct call_image *image, struct device_stream *stream, void **copies) {
    for (int i = 0; i < OP_MAX_TENSORS; i++) {
        struct tensor_image *t = &image->tensor[i];
        if (t->device != NULL && !device_stream_copy(stream, t->device, copies[i], t->buffer.region_bytes))
            return false;
    }
    return true;
}

static bool make_copies(struct call_image *image, void **copies) {
    bool fine = move(image, true);
    for (int i = 0; i < OP_MAX_TENSORS && fine; i++) {
        const struct tensor_image *t = &image->tensor[i];
        if (t->device == NULL) continue;
        copies[i] = device_allocate(image->context, t->buffer.region_bytes);
        fine = copies[i] != NULL &&
               device_upload(image->context, copies[i], t->buffer.region, t->buffer.region_bytes) &&
               device_fill(image->context, t->device, NOT_YET, t->buffer.region_bytes);
    }
    return fine && device_synchronize(image->context) == NULL;
}

/* The name of a tensor that is not as it was before its content arrived. */
static const char *written_early(struct call_image *image) {
    for (int i = 0; i < OP_MAX_TENSORS; i++) {
        struct tensor_image *t = &image->tensor[i];
        if (t->device == NULL) continue;
        if (!device_download(image->context, t->buffer.region, t->device, t->buffer.region_bytes))
            return image->run->spec[i].name;
        for (size_t k = 0; k < t->buffer.region_bytes; k++)
            if (t->buffer.region[k] != NOT_YET) return image->run->spec[i].name;
    }
    return NULL;
}

liger_status call_image_invoke_held(struct call_image *image, struct device_stream *stream) {
    void *copies[OP_MAX_TENSORS] = {NULL};
    liger_status status = LIGER_ERR_INTERNAL;
    image->text[0] = 0;
    if (make_copies(image, copies) && device_stream_hold(stream)) {
        const bool arrived = arrive_on(image, stream, copies);
        status = image->run->op->call(image->context, &image->call, device_stream_handle(stream));
        const bool waited = device_stream_gave_up(stream);
        const char *early = waited ? NULL : written_early(image);
        const char *wrong = device_stream_release(stream);
        if (!arrived) complain(image, "copying on the stream failed", image->run->op->name);
        else if (waited) complain(image, "the call waited for its stream", image->run->op->name);
        else if (early != NULL) complain(image, "written before the stream came to it", early);
        else if (wrong != NULL) complain(image, wrong, image->run->op->name);
        if (!move(image, false)) complain(image, "copying from the device failed", image->run->op->name);
    } else {
        complain(image, "preparing the stream failed", image->run->op->name);
    }
    for (int i = 0; i < OP_MAX_TENSORS; i++)
        if (copies[i] != NULL) device_release(image->context, copies[i]);
    return status;
}

/* ---- after the call ---- */

static bool workspace_fence_broken(const struct call_image *image) {
    const struct guard_buffer *w = &image->workspace;
    for (size_t i = 0; i < w->region_bytes; i++) {
        const bool inside = w->region + i >= w->data && w->region + i < w->data + w->bytes;
        if (!inside && w->region[i] != guard_canary(i)) return true;
    }
    return false;
}

/* Which tensors write into the memory of `owner`. */
static bool writes_to(const struct call_image *image, int i, int owner) {
    const bool same = i == owner || image->tensor[i].same_as == owner;
    return same && image->run->t[i] != NULL && image->run->spec[i].role != ROLE_IN;
}

/* The first of `count` elements that is what it was, or `count`. */
static int64_t first_as_before(const unsigned char *now, const unsigned char *before, int64_t count, int64_t size) {
    for (int64_t k = 0; k < count; k++) {
        bool same = true;
        for (int64_t b = k * size; b < (k + 1) * size; b++) same = same && now[b] == before[b];
        if (same) return k;
    }
    return count;
}

const char *call_image_damage(struct call_image *image) {
    if (image->text[0] != 0) return image->text;
    const struct op_run *run = image->run;
    for (int owner = 0; owner < run->op->tensor_count; owner++) {
        struct tensor_image *memory = &image->tensor[owner];
        if (memory->before == NULL) continue;
        unsigned char *rest = malloc(memory->buffer.region_bytes); /* the region, written elements set back */
        if (rest == NULL) return "no memory";
        memcpy(rest, memory->buffer.region, memory->buffer.region_bytes);
        bool output = false;
        for (int i = 0; i < run->op->tensor_count; i++) {
            if (!writes_to(image, i, owner)) continue;
            output = true;
            const liger_dtype dtype = op_tensor_dtype(&run->spec[i], run->types);
            const int64_t size = (int64_t)liger_dtype_size(dtype);
            const int64_t start = memory->buffer.data - memory->buffer.region;
            struct walk walk = walk_begin(&run->spec[i], image->tensor[i].stride);
            for (int64_t k = 0; k < run->count[i]; k += walk.length, walk_next(&walk)) {
                unsigned char *now = rest + start + walk.offset * size;
                const unsigned char *before = memory->before + start + walk.offset * size;
                const int64_t unwritten = i == owner && run->spec[i].role == ROLE_OUT
                                              ? first_as_before(now, before, walk.length, size)
                                              : walk.length;
                if (unwritten < walk.length)
                    snprintf(image->text, sizeof image->text, "%s: element %lld was never written", run->spec[i].name,
                             (long long)(k + unwritten));
                memcpy(now, before, (size_t)(walk.length * size));
            }
        }
        if (memcmp(rest, memory->before, memory->buffer.region_bytes) != 0)
            complain(image, output ? "written outside of its elements" : "an input was overwritten",
                     run->spec[owner].name);
        free(rest);
    }
    if (image->workspace.map != NULL && workspace_fence_broken(image))
        complain(image, "written outside of its bytes", "workspace");
    return image->text[0] != 0 ? image->text : NULL;
}

const char *call_image_touched(struct call_image *image) {
    if (image->text[0] != 0) return image->text;
    for (int i = 0; i < image->run->op->tensor_count; i++) {
        const struct tensor_image *t = &image->tensor[i];
        if (t->before != NULL && memcmp(t->before, t->buffer.region, t->buffer.region_bytes) != 0)
            complain(image, "touched by a call that was refused", image->run->spec[i].name);
    }
    return image->text[0] != 0 ? image->text : NULL;
}

static const struct guard_buffer *buffer_of(const struct call_image *image, int i) {
    const int same_as = image->tensor[i].same_as;
    return &image->tensor[same_as < 0 ? i : same_as].buffer;
}

void call_image_read(const struct call_image *image, int i, double *values) {
    const struct tensor_spec *spec = &image->run->spec[i];
    const liger_dtype dtype = op_tensor_dtype(spec, image->run->types);
    const int64_t size = (int64_t)liger_dtype_size(dtype);
    struct walk walk = walk_begin(spec, image->tensor[i].stride);
    for (int64_t k = 0; k < image->run->count[i]; k += walk.length, walk_next(&walk))
        format_load_all(dtype, buffer_of(image, i)->data + walk.offset * size, values + k, walk.length);
}

size_t call_image_bits(const struct call_image *image, int i, unsigned char *to) {
    const struct tensor_spec *spec = &image->run->spec[i];
    const int64_t size = (int64_t)liger_dtype_size(op_tensor_dtype(spec, image->run->types));
    const int64_t count = image->run->count[i];
    struct walk walk = walk_begin(spec, image->tensor[i].stride);
    for (int64_t k = 0; k < count && to != NULL; k += walk.length, walk_next(&walk))
        memcpy(to + k * size, buffer_of(image, i)->data + walk.offset * size, (size_t)(walk.length * size));
    return (size_t)(count * size);
}
