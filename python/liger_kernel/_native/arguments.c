/* arguments.c - from Python objects to the fields of an args struct.
 *
 * Only exact Tensor and Parameter objects are taken, and none whose memory is to be read with the sign turned: of a
 * subclass nobody knows here whether its memory is its value. Those go through torch's dispatcher, which does. */
#include <stdio.h>
#include <string.h>

#include "errors.h"
#include "torch_functions.h"

enum { UNKNOWN_DTYPE = 1000 };

/* Steals `number`. */
static int take_int64(PyObject *number, int64_t *value) {
    if (number == NULL) return 0;
    *value = PyLong_AsLongLong(number);
    Py_DECREF(number);
    return !(*value == -1 && PyErr_Occurred());
}

/* Steals `tuple`; answers its length or -1. */
static int take_sizes(const binding_call *call, int index, PyObject *tuple, int64_t *sizes) {
    if (tuple == NULL) return -1;
    const Py_ssize_t n = PyTuple_Size(tuple);
    int ok = n >= 0;
    if (n > LIGER_MAX_DIMS) {
        ok = refuse(call, "%s has %zd dimensions, but at most %d are supported", call->names[index], n, LIGER_MAX_DIMS);
    }
    for (Py_ssize_t i = 0; ok && i < n; i++) {
        sizes[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
        ok = !(sizes[i] == -1 && PyErr_Occurred());
    }
    Py_DECREF(tuple);
    return ok ? (int)n : -1;
}

static int is_exact(PyObject *object) {
    const PyObject *type = (PyObject *)Py_TYPE(object);
    return type == torch.tensor || type == torch.parameter;
}

static int32_t dtype_number(const PyObject *dtype) {
    for (int i = 0; i < DTYPES; i++) {
        if (dtype == torch.dtypes[i]) return i + 1;
    }
    return UNKNOWN_DTYPE;
}

/* A dtype that the library does not have goes there as a number that it does not have either: it knows which dtypes the
 * argument takes, and says so; raise_status puts in the name. */
static int take_dtype(binding_call *call, int index, int32_t *dtype) {
    PyObject *found = ask_dtype(call->argv[index]);
    if (found == NULL) return 0;
    Py_DECREF(found); /* dtypes live for ever; only the address is compared */
    *dtype = dtype_number(found);
    return 1;
}

static const char *device_text(int32_t device, char text[16]) {
    if (device < 0) return "cpu";
    snprintf(text, 16, "cuda:%d", (int)device);
    return text;
}

/* The first tensor decides where the call runs; all others must be there too. */
static int agree_on_device(binding_call *call, int index, int64_t device) {
    if (call->device == NO_DEVICE) {
        call->device = (int32_t)device;
        call->device_argument = index;
        return 1;
    }
    if (call->device == device) return 1;
    char here[16], there[16];
    return refuse(call, "%s is on %s, but %s is on %s", call->names[index], device_text((int32_t)device, here),
                  call->names[call->device_argument], device_text(call->device, there));
}

static int check_device(binding_call *call, int index) {
    int64_t device;
    if (!take_int64(ask_device(call->argv[index]), &device)) return 0;
    if (device >= 0) {
        PyObject *is_cuda = ask_is_cuda(call->argv[index]);
        if (is_cuda == NULL) return 0;
        Py_DECREF(is_cuda);
        if (is_cuda != Py_True || device >= MAX_CUDA_DEVICES)
            return refuse(call, "%s is on a device that is neither the CPU nor a CUDA GPU", call->names[index]);
    }
    return agree_on_device(call, index, device);
}

/* data == NULL would mean "absent": an empty tensor, which has no memory, points here instead. */
static _Alignas(256) char nowhere[256];

static int settle_data(const binding_call *call, int index, liger_tensor *tensor) {
    if (tensor->data != NULL) return 1;
    for (int i = 0; i < tensor->ndim; i++) {
        if (tensor->shape[i] == 0) return tensor->data = nowhere, 1;
    }
    return refuse(call, "%s has no memory (is it a meta or a fake tensor?)", call->names[index]);
}

static int take_data(const binding_call *call, int index, PyObject *object, liger_tensor *tensor) {
    int64_t address;
    if (!take_int64(ask_data_ptr(object), &address)) return 0;
    tensor->data = (void *)(intptr_t)address;
    return settle_data(call, index, tensor);
}

/* ---- arguments that are tensors, and wishes in their place ---- */

static size_t bytes_of(const liger_tensor *tensor) {
    size_t bytes = liger_dtype_size(tensor->dtype);
    for (int i = 0; i < tensor->ndim; i++) bytes *= (size_t)tensor->shape[i];
    return bytes;
}

static int is_wish(PyObject *object) { return (PyObject *)Py_TYPE(object) == torch.wish; }

static PyObject *quick_of(binding_call *call) {
    if (!call->looked_for_quick) call->quick = torch_quick_empty(call->device);
    call->looked_for_quick = 1;
    return call->quick;
}

static int make(binding_call *call, int index, liger_tensor *tensor) {
    const long number = PyLong_AsLong(call->argv[index]);
    const enum wish wish = (enum wish)(number / 16);
    const int source = (int)(number % 16);
    if (call->made_count == MAX_MADE) return refuse(call, "%s is one result too many", call->names[index]);
    if (wish == NOTHING) {
        Py_INCREF(Py_None);
        call->made[call->made_count++] = Py_None;
        return 1;
    }
    const liger_tensor *given = source < FOLLOWED ? call->followed[source] : NULL;
    if (given == NULL || wish >= SCRATCH || (wish == HEADS && given->ndim != 4))
        return refuse(call, "%s cannot be made in the likeness of %s", call->names[index], call->names[source]);
    PyObject *made = results_make(wish, call->argv[source], call->device, quick_of(call), given, tensor);
    if (made == NULL) return 0;
    call->made[call->made_count++] = made;
    if (!take_data(call, index, made, tensor)) return 0;
    if (call->device == LIGER_DEVICE_CPU) host_memory_ask_huge(tensor->data, bytes_of(tensor));
    return 1;
}

/* A dimension of one element, and every dimension of a tensor without elements, has a stride that says nothing: torch
 * leaves a 0 there when the tensor was expanded. Here it gets the one of contiguous memory. */
static void settle_strides(liger_tensor *tensor) {
    int64_t stride = 1;
    int empty = 0;
    for (int i = 0; i < tensor->ndim; i++) empty |= tensor->shape[i] == 0;
    for (int i = tensor->ndim - 1; i >= 0; i--) {
        const int last = i == tensor->ndim - 1;
        if (empty || (tensor->shape[i] == 1 && (last || tensor->stride[i] == 0))) tensor->stride[i] = stride;
        stride = tensor->stride[i] * (tensor->shape[i] > 0 ? tensor->shape[i] : 1);
    }
}

/* Exact tensors whose memory is their value; see the head of this file. */
static int check_readable(const binding_call *call, int index) {
    PyObject *const object = call->argv[index];
    if (!is_exact(object)) {
        const int is_tensor = PyObject_IsInstance(object, torch.tensor_base);
        if (is_tensor <= 0) return is_tensor < 0 ? 0 : wrong_type(call, index, "a torch.Tensor or None");
        return refuse(call, "%s is of a subclass of torch.Tensor", call->names[index]);
    }
    PyObject *const negated = ask_is_neg(object);
    Py_XDECREF(negated);
    if (negated == Py_True) return refuse(call, "%s is a negated view of its memory", call->names[index]);
    return negated != NULL;
}

int binding_tensor(binding_call *call, int index, liger_tensor *tensor) {
    PyObject *const object = call->argv[index];
    if (object == Py_None) return 1;
    if (is_wish(object)) return make(call, index, tensor);
    if (!check_readable(call, index)) return 0;
    if (index < FOLLOWED) call->followed[index] = tensor;
    int64_t device;
    if (torch_look(object, tensor, &device)) {
        settle_strides(tensor);
        return agree_on_device(call, index, device) && settle_data(call, index, tensor);
    }
    if (!check_device(call, index) || !take_dtype(call, index, &tensor->dtype)) return 0;
    tensor->ndim = take_sizes(call, index, ask_shape(object), tensor->shape);
    if (tensor->ndim < 0 || take_sizes(call, index, ask_stride(object), tensor->stride) < 0) return 0;
    settle_strides(tensor);
    return take_data(call, index, object, tensor);
}

PyObject *binding_new(PyObject *self, PyObject *const *argv, Py_ssize_t argc) {
    (void)self;
    static const char *const names[] = {"like", "shape", "dtype"};
    binding_call call = {.function = "new", .names = names, .argv = argv};
    liger_tensor like = {0}, tensor = {0};
    if (!binding_begin(&call, argc, 3, 3) || !binding_tensor(&call, 0, &like)) return NULL;
    if (call.device == NO_DEVICE) return wrong_type(&call, 0, "a torch.Tensor"), NULL;
    if (!PyTuple_Check(argv[1])) return wrong_type(&call, 1, "a tuple of int"), NULL;
    Py_INCREF(argv[1]);
    tensor.ndim = take_sizes(&call, 1, argv[1], tensor.shape);
    if (tensor.ndim < 0) return NULL;
    for (int i = 0; i < tensor.ndim; i++)
        if (tensor.shape[i] < 0) return refuse(&call, "shape has a negative size"), NULL;
    tensor.dtype = argv[2] == Py_None ? like.dtype : dtype_number(argv[2]);
    if (tensor.dtype == UNKNOWN_DTYPE) return refuse(&call, "dtype is none that the library has"), NULL;
    PyObject *made = results_make_shaped(argv[0], call.device, quick_of(&call), &tensor);
    if (made == NULL || call.device != LIGER_DEVICE_CPU || bytes_of(&tensor) == 0) return made;
    call.argv = &made;
    if (!take_data(&call, 0, made, &tensor)) return Py_DECREF(made), NULL;
    host_memory_ask_huge(tensor.data, bytes_of(&tensor));
    return made;
}

enum { ALIGNMENT = 256 };

int binding_scratch(binding_call *call, size_t needed, void **data, size_t *bytes) {
    int64_t address;
    if (needed == 0) return 1;
    PyObject *const like = call->argv[call->device_argument];
    if (!is_exact(like)) return refuse(call, "there is no tensor that says where scratch belongs");
    call->scratch = results_make_bytes(like, call->device, quick_of(call), needed + ALIGNMENT);
    if (call->scratch == NULL || !take_int64(ask_data_ptr(call->scratch), &address)) return 0;
    *data = (void *)(((uintptr_t)address + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    *bytes = needed;
    return 1;
}

int binding_workspace(binding_call *call, int index, void **data, size_t *bytes) {
    liger_tensor tensor = {0};
    if (is_wish(call->argv[index])) {
        call->wants_scratch = PyLong_AsLong(call->argv[index]) / 16 == SCRATCH;
        return call->wants_scratch ? 1 : wrong_type(call, index, "a torch.Tensor, None or the wish for scratch");
    }
    if (!binding_tensor(call, index, &tensor)) return 0;
    size_t size = liger_dtype_size(tensor.dtype);
    for (int i = tensor.ndim - 1; i >= 0; i--) {
        if (tensor.shape[i] != 1 && tensor.stride[i] != (int64_t)(size / liger_dtype_size(tensor.dtype)))
            return refuse(call, "%s is not contiguous", call->names[index]);
        size *= (size_t)tensor.shape[i];
    }
    *data = tensor.data;
    *bytes = tensor.data == NULL || tensor.data == (void *)nowhere ? 0 : size;
    return 1;
}

int binding_double(const binding_call *call, int index, double *value) {
    PyObject *const object = call->argv[index];
    if (!PyFloat_Check(object) && !PyLong_Check(object)) return wrong_type(call, index, "a float");
    *value = PyFloat_AsDouble(object);
    return !(*value == -1.0 && PyErr_Occurred());
}

int binding_float(const binding_call *call, int index, float *value) {
    double wide = 0;
    if (!binding_double(call, index, &wide)) return 0;
    *value = (float)wide;
    return 1;
}

int binding_int64(const binding_call *call, int index, int64_t *value) {
    PyObject *const object = call->argv[index];
    if (!PyLong_Check(object)) return wrong_type(call, index, "an int");
    int overflow = 0;
    *value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow != 0) return refuse(call, "%s does not fit into 64 bits", call->names[index]);
    return !(*value == -1 && PyErr_Occurred());
}

int binding_int32(const binding_call *call, int index, int32_t *value) {
    int64_t wide = 0;
    if (!binding_int64(call, index, &wide)) return 0;
    if (wide < INT32_MIN || wide > INT32_MAX)
        return refuse(call, "%s is %lld, which does not fit into 32 bits", call->names[index], (long long)wide);
    *value = (int32_t)wide;
    return 1;
}
