/* results.c - the tensors that a call makes itself, in the likeness of its first arguments. */
#include <string.h>

#include "torch_functions.h"

/* Gives it the strides of contiguous memory, if it has not; answers whether it had. What is written of a dimension of size 1
 * says nothing, and stays where all else is in order. */
static int make_contiguous(liger_tensor *tensor) {
    int64_t contiguous[LIGER_MAX_DIMS], stride = 1;
    int was = 1;
    for (int i = tensor->ndim - 1; i >= 0; i--) {
        was = was && (tensor->stride[i] == stride || tensor->shape[i] == 1);
        contiguous[i] = stride;
        stride *= tensor->shape[i];
    }
    if (!was) memcpy(tensor->stride, contiguous, sizeof *contiguous * (size_t)tensor->ndim);
    return was;
}

static PyObject *call_with(PyObject *function, PyObject *arguments, PyObject *keywords) {
    if (arguments == NULL) return NULL;
    PyObject *result = PyObject_Call(function, arguments, keywords);
    Py_DECREF(arguments);
    return result;
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

static PyObject *sizes_of(const int64_t *sizes, int count) {
    PyObject *tuple = PyTuple_New(count);
    for (int i = 0; tuple != NULL && i < count; i++) {
        PyObject *size = PyLong_FromLongLong(sizes[i]);
        if (size == NULL || PyTuple_SetItem(tuple, i, size) != 0) Py_CLEAR(tuple);
    }
    return tuple;
}

/* New memory of the shape, strides and dtype of `tensor`, from the quick function or else from torch.empty_strided: of all
 * the public ways that name a dtype and a device it costs the least, half of new_empty's. */
static PyObject *new_strided(PyObject *like, int32_t device, PyObject *quick, const liger_tensor *tensor) {
    const int dtype = known(tensor->dtype);
    PyObject *shape = sizes_of(tensor->shape, tensor->ndim), *stride = sizes_of(tensor->stride, tensor->ndim);
    PyObject *options = quick != NULL ? NULL : options_of(like, device, dtype), *arguments = NULL;
    if (shape != NULL && stride != NULL && quick != NULL)
        arguments = PyTuple_Pack(3, shape, stride, torch.dtypes[dtype - 1]);
    else if (shape != NULL && stride != NULL && options != NULL) arguments = PyTuple_Pack(2, shape, stride);
    Py_XDECREF(shape), Py_XDECREF(stride);
    return call_with(quick != NULL ? quick : torch.empty_strided, arguments, options);
}

/* The same in the likeness of `like`; `kept`: its own strides, which empty_like gives without being told. */
static PyObject *new_like(PyObject *like, int32_t device, PyObject *quick, const liger_tensor *tensor, int kept) {
    if (quick == NULL && kept) return call_with(torch.empty_like, PyTuple_Pack(1, like), NULL);
    return new_strided(like, device, quick, tensor);
}

static PyObject *new_rows(PyObject *like, int32_t device, PyObject *quick, const liger_tensor *given,
                          liger_tensor *tensor) {
    *tensor = *given;
    const int was = make_contiguous(tensor);
    return new_like(like, device, quick, tensor, was);
}

/* No dimensions, or one of the source's rows. */
static PyObject *new_values(PyObject *like, int32_t device, PyObject *quick, const liger_tensor *given,
                            liger_tensor *tensor, int per_row, int dtype) {
    *tensor = (liger_tensor){.dtype = dtype, .ndim = per_row, .shape = {1}, .stride = {1}};
    for (int i = 0; per_row && i < given->ndim - 1; i++) tensor->shape[0] *= given->shape[i];
    return new_strided(like, device, quick, tensor);
}

/* A bit for each element, row by row. */
static PyObject *new_bits(PyObject *like, int32_t device, PyObject *quick, const liger_tensor *given,
                          liger_tensor *tensor) {
    const int64_t words = ((given->ndim > 0 ? given->shape[given->ndim - 1] : 1) + 31) / 32;
    *tensor = (liger_tensor){.dtype = LIGER_I32, .ndim = 2, .shape = {1, words}, .stride = {words, 1}};
    for (int i = 0; i < given->ndim - 1; i++) tensor->shape[0] *= given->shape[i];
    return new_strided(like, device, quick, tensor);
}

PyObject *results_make_bytes(PyObject *like, int32_t device, PyObject *quick, size_t bytes) {
    const liger_tensor tensor = {.dtype = LIGER_U8, .ndim = 1, .shape = {(int64_t)bytes}, .stride = {1}};
    return new_strided(like, device, quick, &tensor);
}

/* Contiguous memory of the shape and dtype of `tensor`, with the strides that torch writes for it. */
PyObject *results_make_shaped(PyObject *like, int32_t device, PyObject *quick, liger_tensor *tensor) {
    int64_t stride = 1;
    for (int i = tensor->ndim - 1; i >= 0; i--) {
        tensor->stride[i] = stride;
        stride *= tensor->shape[i] > 0 ? tensor->shape[i] : 1;
    }
    return new_strided(like, device, quick, tensor);
}

static PyObject *new_heads(PyObject *like, int32_t device, PyObject *quick, const liger_tensor *given,
                           liger_tensor *tensor) {
    *tensor = *given;
    const int64_t heads = given->shape[1], seq = given->shape[2], dim = given->shape[3];
    const int64_t strides[4] = {seq * heads * dim, dim, heads * dim, 1};
    memcpy(tensor->stride, strides, sizeof strides);
    return new_like(like, device, quick, tensor,
                    memcmp(given->stride, strides, sizeof strides) == 0); /* dense: they are kept */
}

PyObject *results_make(enum wish wish, PyObject *like, int32_t device, PyObject *quick, const liger_tensor *given,
                       liger_tensor *tensor) {
    switch (wish) {
        case LIKE: return new_rows(like, device, quick, given, tensor);
        case HEADS: return new_heads(like, device, quick, given, tensor);
        case PER_ROW: return new_values(like, device, quick, given, tensor, 1, LIGER_F32);
        case PER_ROW_SAME: return new_values(like, device, quick, given, tensor, 1, known(given->dtype));
        case PER_ROW_I64: return new_values(like, device, quick, given, tensor, 1, LIGER_I64);
        case PER_ROW_BITS: return new_bits(like, device, quick, given, tensor);
        case SCALAR: return new_values(like, device, quick, given, tensor, 0, LIGER_F32);
        default: return new_values(like, device, quick, given, tensor, 0, known(given->dtype));
    }
}
