/* results.c - the tensors that a call makes itself, in the likeness of its first arguments. */
#define _DEFAULT_SOURCE /* madvise */
#include <string.h>
#include <sys/mman.h>

#include "torch_functions.h"

/* Answers whether it was contiguous before; the stride of a dimension of size 1 says nothing. */
static int make_contiguous(liger_tensor *tensor) {
    int64_t stride = 1;
    int was = 1;
    for (int i = tensor->ndim - 1; i >= 0; i--) {
        was = was && (tensor->stride[i] == stride || tensor->shape[i] == 1);
        tensor->stride[i] = stride;
        stride *= tensor->shape[i];
    }
    return was;
}

static PyObject *call_with(PyObject *function, PyObject *arguments, PyObject *keywords) {
    if (arguments == NULL) return NULL;
    PyObject *result = PyObject_Call(function, arguments, keywords);
    Py_DECREF(arguments);
    return result;
}

static PyObject *new_rows(PyObject *like, const liger_tensor *given, liger_tensor *tensor) {
    *tensor = *given;
    /* without the keyword torch keeps the strides of a dense tensor, and the call is a third cheaper */
    PyObject *keywords = make_contiguous(tensor) ? NULL : torch.contiguous;
    return call_with(torch.empty_like, PyTuple_Pack(1, like), keywords);
}

/* For a dtype that the library will refuse any will do. */
static int known(int dtype) { return dtype >= 1 && dtype <= DTYPES ? dtype : LIGER_F32; }

/* {"dtype": ..., "device": that of like}, kept for each pair. Borrowed. */
static PyObject *options_of(PyObject *like, int32_t device, int dtype) {
    static PyObject *kept[MAX_CUDA_DEVICES + 1][DTYPES];
    PyObject **place = &kept[device + 1][dtype - 1];
    if (*place == NULL) {
        PyObject *object = PyObject_GetAttr(like, torch.name_device);
        if (object != NULL) *place = Py_BuildValue("{s:O,s:N}", "dtype", torch.dtypes[dtype - 1], "device", object);
    }
    return *place;
}

/* The strides of `tensor`, whose shape and dtype are filled in too. Of all of torch's ways to new memory that name a dtype
 * and a device this one costs the least, half of new_empty's. */
static PyObject *new_strided(PyObject *like, int32_t device, const liger_tensor *tensor) {
    PyObject *shape = PyTuple_New(tensor->ndim), *stride = PyTuple_New(tensor->ndim);
    for (int i = 0; shape != NULL && stride != NULL && i < tensor->ndim; i++) {
        PyTuple_SetItem(shape, i, PyLong_FromLongLong(tensor->shape[i]));
        PyTuple_SetItem(stride, i, PyLong_FromLongLong(tensor->stride[i]));
    }
    PyObject *options = options_of(like, device, known(tensor->dtype));
    PyObject *arguments =
        shape == NULL || stride == NULL || options == NULL || PyErr_Occurred() ? NULL : PyTuple_Pack(2, shape, stride);
    Py_XDECREF(shape), Py_XDECREF(stride);
    return call_with(torch.empty_strided, arguments, options);
}

/* No dimensions, or one of the source's rows. */
static PyObject *new_values(PyObject *like, int32_t device, const liger_tensor *given, liger_tensor *tensor,
                            int per_row, int dtype) {
    *tensor = (liger_tensor){.dtype = dtype, .ndim = per_row, .shape = {1}, .stride = {1}};
    for (int i = 0; per_row && i < given->ndim - 1; i++) tensor->shape[0] *= given->shape[i];
    return new_strided(like, device, tensor);
}

PyObject *results_make_bytes(PyObject *like, int32_t device, size_t bytes) {
    const liger_tensor tensor = {.dtype = LIGER_U8, .ndim = 1, .shape = {(int64_t)bytes}, .stride = {1}};
    return new_strided(like, device, &tensor);
}

static PyObject *new_heads(PyObject *like, int32_t device, const liger_tensor *given, liger_tensor *tensor) {
    *tensor = *given;
    const int64_t heads = given->shape[1], seq = given->shape[2], dim = given->shape[3];
    const int64_t strides[4] = {seq * heads * dim, dim, heads * dim, 1};
    memcpy(tensor->stride, strides, sizeof strides);
    if (memcmp(given->stride, strides, sizeof strides) != 0) return new_strided(like, device, tensor);
    return call_with(torch.empty_like, PyTuple_Pack(1, like), NULL); /* dense: torch keeps its strides */
}

/* Large host memory straight from the system has page faults that cost more than the arithmetic that fills it: pages of
 * 2 MB have 512 times fewer. A hint: whether it was taken makes no difference to anything but time. */
void results_ask_huge(void *data, size_t bytes) {
    const uintptr_t page = 2u << 20, begin = ((uintptr_t)data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)data + bytes) / page * page;
    if (data != NULL && begin < end) (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
}

PyObject *results_make(enum wish wish, PyObject *like, int32_t device, const liger_tensor *given,
                       liger_tensor *tensor) {
    switch (wish) {
        case LIKE: return new_rows(like, given, tensor);
        case HEADS: return new_heads(like, device, given, tensor);
        case PER_ROW: return new_values(like, device, given, tensor, 1, LIGER_F32);
        case PER_ROW_SAME: return new_values(like, device, given, tensor, 1, known(given->dtype));
        case PER_ROW_I64: return new_values(like, device, given, tensor, 1, LIGER_I64);
        case SCALAR: return new_values(like, device, given, tensor, 0, LIGER_F32);
        default: return new_values(like, device, given, tensor, 0, known(given->dtype));
    }
}
