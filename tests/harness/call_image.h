/* call_image.h - the memory of one call: a buffer per tensor, laid out, filled, fenced, and examined afterwards. */
#ifndef TESTS_HARNESS_CALL_IMAGE_H
#define TESTS_HARNESS_CALL_IMAGE_H

#include "tests/harness/device_memory.h"
#include "tests/harness/guard_buffer.h"
#include "tests/harness/op_run.h"

enum spacing {
    SPACING_DENSE,
    SPACING_ODD,  /* gaps of odd sizes, and every tensor begins one element off its alignment */
    SPACING_WIDE, /* gaps that keep rows aligned */
    SPACING_ASKEW /* dense, and each tensor begins off its alignment by another number of elements, the first by none */
};

struct tensor_image {
    struct guard_buffer buffer;
    unsigned char *before; /* the region as it was handed over */
    void *device;          /* the region's copy on a GPU */
    int64_t stride[LIGER_MAX_DIMS];
    int same_as; /* the tensor whose memory this one uses; -1: its own */
};

struct call_image {
    const struct op_run *run;
    liger_context *context;
    struct op_call call;
    struct tensor_image tensor[OP_MAX_TENSORS];
    struct guard_buffer workspace;
    void *device_workspace;
    char text[384]; /* why making or examining failed */
};

/* `same_as`: for each tensor the input whose memory it is to use, or -1; NULL means none. False: see text. */
bool call_image_make(struct call_image *image, struct op_run *run, enum placement place, enum spacing spacing,
                     const int *same_as);
void call_image_free(struct call_image *image);

/* Copies to the device, calls, waits, copies back. */
liger_status call_image_invoke(struct call_image *image, liger_stream stream);
/* The same on a stream that is held until the call has returned, the inputs arriving behind the hold: work of the call that
 * is on another stream reads no inputs, or shows by what it writes too early, and a call that waits is found out. */
liger_status call_image_invoke_held(struct call_image *image, struct device_stream *stream);

/* After a call that succeeded: nothing but the elements of outputs may have changed, and all of them must have been
 * written. NULL, or what is wrong. */
const char *call_image_damage(struct call_image *image);
/* After a call that was refused: nothing may have changed. */
const char *call_image_touched(struct call_image *image);

/* An output as contiguous doubles. */
void call_image_read(const struct call_image *image, int tensor, double *values);
/* The bits of an output, element after element; returns how many bytes. `to` may be NULL. */
size_t call_image_bits(const struct call_image *image, int tensor, unsigned char *to);

liger_dtype op_tensor_dtype(const struct tensor_spec *spec, struct op_types types);
int64_t op_tensor_count(const struct tensor_spec *spec);
/* Contiguous doubles into a view of memory. */
void op_tensor_store(const struct tensor_spec *spec, liger_dtype dtype, const int64_t *stride, const double *values,
                     void *data);
/* Strides; returns the elements from the first to one past the last. */
int64_t op_tensor_layout(const struct tensor_spec *spec, enum spacing spacing, int64_t *stride);

#endif
