/* torch_functions.h - what the binding keeps of torch: types, dtypes, and functions that are called directly. */
#ifndef LIGER_TORCH_FUNCTIONS_H
#define LIGER_TORCH_FUNCTIONS_H

#include "binding.h"

enum { DTYPES = 8, MAX_CUDA_DEVICES = 64 };

/* What a call can be asked to make. A wish is an int of _native.Wish: its kind, and the number of the argument (one of the
 * first FOLLOWED) in whose likeness it is: kind * 16 + source. */
enum wish {
    NOTHING, /* absent, and None among the results */
    LIKE,    /* memory like the source's, contiguous */
    HEADS,   /* [batch, seq, heads, dim] seen as [batch, heads, seq, dim], like the source */
    PER_ROW, /* for each row of the source (its leading dimensions) one f32, */
    PER_ROW_SAME,
    PER_ROW_I64,
    PER_ROW_BITS, /* for each row its elements' bits, in words of i32 */
    SCALAR,       /* no dimensions; f32 or the source's dtype */
    SCALAR_SAME,
    SCRATCH, /* a workspace as large as the call needs */
    WISHES
};

typedef PyObject *(*keyword_function)(PyObject *, PyObject *, PyObject *);

struct torch_functions {
    PyObject *tensor_base, *tensor, *parameter;
    PyObject *dtypes[DTYPES]; /* index: liger_dtype - 1 */
    PyObject *argument_error, *library_error;
    PyObject *cuda_setup; /* called once, before the first CUDA call; answers (stream of an index, current index) */
    PyObject *cuda_stream, *cuda_current;
    PyObject *empty;
    PyObject *name_data_ptr, *name_get_device, *name_stride, *name_dtype, *name_shape, *name_is_cuda;
    PyCFunction data_ptr, get_device, is_neg;
    keyword_function stride;
    descrgetfunc get_dtype, get_shape, get_is_cuda;
    PyObject *dtype_getter, *shape_getter, *is_cuda_getter;
    PyObject *wish; /* the type */
    PyObject *empty_like, *empty_strided;
    PyObject *quick_cpu, *quick_cuda; /* (shape, stride, dtype) -> new memory, on the GPU that is current; or NULL */
    PyObject *name_device;
    int direct; /* the functions above were found */
};

extern struct torch_functions torch; /* registered by Python at start-up */

/* setup(TensorBase, Tensor, Parameter, dtypes, argument_error, library_error, cuda_setup, sample,
 *       wish, empty_like, empty_strided, (quick on the CPU, quick on CUDA)) */
PyObject *torch_functions_setup(PyObject *self, PyObject *arguments);
/* The whole view of an exact tensor in one call; 0 without an exception where its questions must be asked one by one, if
 * only to say what is wrong. */
int torch_look(PyObject *object, liger_tensor *tensor, int64_t *device);
/* Looks up what a CUDA call needs, once. */
int torch_cuda_ready(void);
/* The quick way to new memory on a device, borrowed; or NULL. */
PyObject *torch_quick_empty(int32_t device);

/* ---- questions to a tensor, asked directly or by name ---- */

static inline PyObject *ask_data_ptr(PyObject *t) {
    return torch.direct ? torch.data_ptr(t, NULL) : PyObject_CallMethodObjArgs(t, torch.name_data_ptr, NULL);
}
static inline PyObject *ask_device(PyObject *t) {
    return torch.direct ? torch.get_device(t, NULL) : PyObject_CallMethodObjArgs(t, torch.name_get_device, NULL);
}
static inline PyObject *ask_is_neg(PyObject *t) {
    return torch.direct ? torch.is_neg(t, NULL) : PyObject_CallMethod(t, "is_neg", NULL);
}
static inline PyObject *ask_stride(PyObject *t) {
    return torch.direct ? torch.stride(t, torch.empty, NULL) : PyObject_CallMethodObjArgs(t, torch.name_stride, NULL);
}
static inline PyObject *ask_shape(PyObject *t) {
    return torch.direct ? torch.get_shape(torch.shape_getter, t, (PyObject *)Py_TYPE(t))
                        : PyObject_GetAttr(t, torch.name_shape);
}
static inline PyObject *ask_dtype(PyObject *t) {
    return torch.direct ? torch.get_dtype(torch.dtype_getter, t, (PyObject *)Py_TYPE(t))
                        : PyObject_GetAttr(t, torch.name_dtype);
}
static inline PyObject *ask_is_cuda(PyObject *t) {
    return torch.direct ? torch.get_is_cuda(torch.is_cuda_getter, t, (PyObject *)Py_TYPE(t))
                        : PyObject_GetAttr(t, torch.name_is_cuda);
}

/* results.c: makes the tensor of a wish in the likeness of `like`, which is `given`, by what torch_quick_empty() answers for
 * the device. Its data is not looked up. */
PyObject *results_make(enum wish wish, PyObject *like, int32_t device, PyObject *quick, const liger_tensor *given,
                       liger_tensor *tensor);
/* A uint8 tensor on the device of `like`. */
PyObject *results_make_bytes(PyObject *like, int32_t device, PyObject *quick, size_t bytes);

/* host_memory.c: asks the system for huge pages for a large result, where they pay. */
void host_memory_ask_huge(void *data, size_t bytes);
/* Does a balloon among these devices (a folder as /sys/bus/virtio/devices) give back what is free? */
int host_memory_is_taken_back(const char *virtio_devices);

#endif
