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

static PyObject *new_empty(PyObject *like, PyObject *arguments, PyObject *keywords) {
    if (torch.direct) return torch.new_empty(like, arguments, keywords);
    PyObject *bound = PyObject_GetAttrString(like, "new_empty");
    PyObject *made = bound == NULL ? NULL : PyObject_Call(bound, arguments, keywords);
    Py_XDECREF(bound);
    return made;
}

/* For a dtype that the library will refuse any will do. */
static int known(int dtype) { return dtype >= 1 && dtype <= DTYPES ? dtype : LIGER_F32; }

/* No dimensions, or one of the source's rows. */
static PyObject *new_values(PyObject *like, const liger_tensor *given, liger_tensor *tensor, int per_row, int dtype) {
    *tensor = (liger_tensor){.dtype = dtype, .ndim = per_row, .shape = {1}, .stride = {1}};
    for (int i = 0; per_row && i < given->ndim - 1; i++) tensor->shape[0] *= given->shape[i];
    PyObject *arguments = per_row ? Py_BuildValue("(L)", (long long)tensor->shape[0]) : Py_BuildValue("(())");
    PyObject *made = arguments == NULL ? NULL : new_empty(like, arguments, torch.as_dtype[dtype - 1]);
    Py_XDECREF(arguments);
    return made;
}

PyObject *results_make_bytes(PyObject *like, size_t bytes) {
    PyObject *arguments = Py_BuildValue("(n)", (Py_ssize_t)bytes);
    PyObject *made = arguments == NULL ? NULL : new_empty(like, arguments, torch.as_dtype[LIGER_U8 - 1]);
    Py_XDECREF(arguments);
    return made;
}

static PyObject *new_strided(PyObject *like, const liger_tensor *tensor) {
    const int64_t *n = tensor->shape, *s = tensor->stride;
    PyObject *device = PyObject_GetAttr(like, torch.name_device);
    PyObject *keywords =
        device == NULL ? NULL
                       : Py_BuildValue("{s:O,s:N}", "dtype", torch.dtypes[known(tensor->dtype) - 1], "device", device);
    if (keywords == NULL) return NULL;
    PyObject *arguments = Py_BuildValue("((LLLL)(LLLL))", n[0], n[1], n[2], n[3], s[0], s[1], s[2], s[3]);
    PyObject *made = call_with(torch.empty_strided, arguments, keywords);
    Py_DECREF(keywords);
    return made;
}

static PyObject *new_heads(PyObject *like, const liger_tensor *given, liger_tensor *tensor) {
    *tensor = *given;
    const int64_t heads = given->shape[1], seq = given->shape[2], dim = given->shape[3];
    const int64_t strides[4] = {seq * heads * dim, dim, heads * dim, 1};
    memcpy(tensor->stride, strides, sizeof strides);
    if (memcmp(given->stride, strides, sizeof strides) != 0) return new_strided(like, tensor);
    return call_with(torch.empty_like, PyTuple_Pack(1, like), NULL); /* dense: torch keeps its strides */
}

/* Large host memory straight from the system has page faults that cost more than the arithmetic that fills it: pages of
 * 2 MB have 512 times fewer. A hint: whether it was taken makes no difference to anything but time. */
void results_ask_huge(void *data, size_t bytes) {
    const uintptr_t page = 2u << 20, begin = ((uintptr_t)data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)data + bytes) / page * page;
    if (data != NULL && begin < end) (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
}

PyObject *results_make(enum wish wish, PyObject *like, const liger_tensor *given, liger_tensor *tensor) {
    switch (wish) {
        case LIKE: return new_rows(like, given, tensor);
        case HEADS: return new_heads(like, given, tensor);
        case PER_ROW: return new_values(like, given, tensor, 1, LIGER_F32);
        case PER_ROW_SAME: return new_values(like, given, tensor, 1, known(given->dtype));
        case PER_ROW_I64: return new_values(like, given, tensor, 1, LIGER_I64);
        case SCALAR: return new_values(like, given, tensor, 0, LIGER_F32);
        default: return new_values(like, given, tensor, 0, known(given->dtype));
    }
}
