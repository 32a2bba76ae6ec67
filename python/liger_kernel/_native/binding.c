/* binding.c - from torch tensors to views, from a status to an exception: the hand-written part of the binding.
 *
 * Nothing here knows torch's headers or version. A tensor is asked through its Python methods; what a call would cost by
 * name (a type lookup, a bound method, an argument tuple) is paid once at start-up: the C functions behind data_ptr,
 * get_device and stride and the getters behind dtype, shape and is_cuda are kept and called directly.
 *
 * Only exact Tensor and Parameter objects are taken, and none whose memory is to be read with the sign turned: of a
 * subclass nobody knows here whether its memory is its value. Those go through torch's dispatcher, which does.
 *
 * Where torch offers DLPack's C exchange table (DLPack 1.3, a stable ABI), one call answers all questions about such an
 * object, in a tenth of the time. It is used after it has answered right for a sample. */
#include "torch_functions.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { HUGE_RESULT = 4 << 20, UNKNOWN_DTYPE = 1000 };

struct torch_functions torch;

/* DLPack 1.3, as far as it is used here. */
enum { DL_CPU = 1, DL_CUDA = 2, DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4 };

typedef struct dl_tensor {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;

typedef struct dl_exchange {
    uint32_t major, minor;
    struct dl_exchange *older;
    void (*allocate)(void), (*take)(void), (*give)(void); /* other signatures: not called */
    int (*look)(void *object, dl_tensor *out);            /* borrows: valid while the object is */
    void (*current_stream)(void);
} dl_exchange;

static const dl_exchange *exchange; /* NULL: there is none */

static liger_context *contexts[MAX_CUDA_DEVICES + 1]; /* index: device + 1 */

static PyCFunction method_of(PyObject *sample, const char *name, int flags) {
    PyObject *bound = PyObject_GetAttrString(sample, name);
    if (bound == NULL) return PyErr_Clear(), (PyCFunction)0;
    PyCFunction function = NULL;
    if (PyCFunction_Check(bound) && PyCFunction_GetFlags(bound) == flags) function = PyCFunction_GetFunction(bound);
    Py_DECREF(bound);
    return function;
}

/* The descriptor of an attribute and the function that reads it. The reference is kept. */
static descrgetfunc getter_of(PyObject *type, const char *name, PyObject **descriptor) {
    *descriptor = PyObject_GetAttrString(type, name);
    if (*descriptor == NULL) return PyErr_Clear(), (descrgetfunc)0;
    if (Py_TYPE(*descriptor) != &PyGetSetDescr_Type) return NULL;
    void *slot = PyType_GetSlot(&PyGetSetDescr_Type, Py_tp_descr_get);
    return (descrgetfunc)slot;
}

/* The table, if this torch has one and it describes the sample, a 2 x 3 f32 matrix with strides 1 and 2, as it is. */
static const dl_exchange *find_exchange(PyObject *sample) {
    PyObject *capsule = PyObject_GetAttrString(torch.tensor, "__dlpack_c_exchange_api__");
    const dl_exchange *table =
        capsule == NULL ? NULL : (const dl_exchange *)PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    Py_XDECREF(capsule); /* the table lives as long as the process */
    PyErr_Clear();
    if (table == NULL || table->major != 1 || table->look == NULL || torch.data_ptr == NULL) return NULL;
    PyObject *address = torch.data_ptr(sample, NULL);
    void *data = address == NULL ? NULL : PyLong_AsVoidPtr(address);
    Py_XDECREF(address);
    dl_tensor seen = {0};
    const int answered = table->look(sample, &seen) == 0;
    PyErr_Clear();
    if (!answered || data == NULL || seen.data != data || seen.byte_offset != 0 || seen.ndim != 2) return NULL;
    if (seen.device_type != DL_CPU || seen.code != DL_FLOAT || seen.bits != 32 || seen.lanes != 1) return NULL;
    const int right = seen.shape[0] == 2 && seen.shape[1] == 3 && seen.strides[0] == 1 && seen.strides[1] == 2;
    return right ? table : NULL;
}

/* setup(TensorBase, Tensor, Parameter, dtypes, argument_error, library_error, cuda_setup, sample,
 *       wish, empty_like, empty_strided, contiguous_format) */
static PyObject *setup(PyObject *self, PyObject *arguments) {
    (void)self;
    PyObject *dtypes, *sample, *format;
    if (!PyArg_ParseTuple(arguments, "OOOOOOOOOOOO:setup", &torch.tensor_base, &torch.tensor, &torch.parameter, &dtypes,
                          &torch.argument_error, &torch.library_error, &torch.cuda_setup, &sample, &torch.wish,
                          &torch.empty_like, &torch.empty_strided, &format))
        return NULL;
    Py_INCREF(torch.tensor_base), Py_INCREF(torch.tensor), Py_INCREF(torch.parameter);
    Py_INCREF(torch.argument_error), Py_INCREF(torch.library_error), Py_INCREF(torch.cuda_setup);
    for (int i = 0; i < DTYPES; i++) {
        torch.dtypes[i] = PySequence_GetItem(dtypes, i);
        if (torch.dtypes[i] == NULL) return NULL;
    }
    Py_INCREF(torch.wish), Py_INCREF(torch.empty_like), Py_INCREF(torch.empty_strided);
    torch.contiguous = Py_BuildValue("{s:O}", "memory_format", format);
    torch.empty = PyTuple_New(0);
    torch.data_ptr = method_of(sample, "data_ptr", METH_NOARGS);
    torch.get_device = method_of(sample, "get_device", METH_NOARGS);
    torch.is_neg = method_of(sample, "is_neg", METH_NOARGS);
    torch.stride = (keyword_function)(void (*)(void))method_of(sample, "stride", METH_VARARGS | METH_KEYWORDS);
    torch.get_dtype = getter_of(torch.tensor_base, "dtype", &torch.dtype_getter);
    torch.get_shape = getter_of(torch.tensor_base, "shape", &torch.shape_getter);
    torch.get_is_cuda = getter_of(torch.tensor_base, "is_cuda", &torch.is_cuda_getter);
    torch.direct = torch.empty != NULL && torch.data_ptr != NULL && torch.get_device != NULL && torch.stride != NULL &&
                   torch.is_neg != NULL && torch.get_dtype != NULL && torch.get_shape != NULL &&
                   torch.get_is_cuda != NULL;
    torch.name_data_ptr = PyUnicode_InternFromString("data_ptr");
    torch.name_get_device = PyUnicode_InternFromString("get_device");
    torch.name_stride = PyUnicode_InternFromString("stride");
    torch.name_dtype = PyUnicode_InternFromString("dtype");
    torch.name_shape = PyUnicode_InternFromString("shape");
    torch.name_is_cuda = PyUnicode_InternFromString("is_cuda");
    torch.name_device = PyUnicode_InternFromString("device");
    if (PyErr_Occurred()) return NULL;
    exchange = torch.direct ? find_exchange(sample) : NULL;
    Py_RETURN_NONE;
}

/* ---- questions to a tensor, asked directly or by name ---- */

static PyObject *ask_data_ptr(PyObject *t) {
    return torch.direct ? torch.data_ptr(t, NULL) : PyObject_CallMethodObjArgs(t, torch.name_data_ptr, NULL);
}
static PyObject *ask_device(PyObject *t) {
    return torch.direct ? torch.get_device(t, NULL) : PyObject_CallMethodObjArgs(t, torch.name_get_device, NULL);
}
static PyObject *ask_is_neg(PyObject *t) {
    return torch.direct ? torch.is_neg(t, NULL) : PyObject_CallMethod(t, "is_neg", NULL);
}
static PyObject *ask_stride(PyObject *t) {
    return torch.direct ? torch.stride(t, torch.empty, NULL) : PyObject_CallMethodObjArgs(t, torch.name_stride, NULL);
}
static PyObject *ask_shape(PyObject *t) {
    return torch.direct ? torch.get_shape(torch.shape_getter, t, (PyObject *)Py_TYPE(t))
                        : PyObject_GetAttr(t, torch.name_shape);
}
static PyObject *ask_dtype(PyObject *t) {
    return torch.direct ? torch.get_dtype(torch.dtype_getter, t, (PyObject *)Py_TYPE(t))
                        : PyObject_GetAttr(t, torch.name_dtype);
}
static PyObject *ask_is_cuda(PyObject *t) {
    return torch.direct ? torch.get_is_cuda(torch.is_cuda_getter, t, (PyObject *)Py_TYPE(t))
                        : PyObject_GetAttr(t, torch.name_is_cuda);
}

/* ---- errors ---- */

static int refuse(const binding_call *call, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int refuse(const binding_call *call, const char *format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    PyErr_Format(torch.argument_error, "%s: %s", call->function, text);
    return 0;
}

static int wrong_type(const binding_call *call, int index, const char *wanted) {
    PyObject *name = PyObject_GetAttrString((PyObject *)Py_TYPE(call->argv[index]), "__name__");
    if (name == NULL) return 0;
    PyErr_Format(PyExc_TypeError, "%s: %s must be %s, not %U", call->function, call->names[index], wanted, name);
    Py_DECREF(name);
    return 0;
}

static PyObject *exception_of(liger_status status) {
    switch (status) {
        case LIGER_ERR_ARGUMENT:
        case LIGER_ERR_SHAPE:
        case LIGER_ERR_DTYPE:
        case LIGER_ERR_LAYOUT:
        case LIGER_ERR_TARGET:
        case LIGER_ERR_DEVICE: return torch.argument_error;
        case LIGER_ERR_OOM: return PyExc_MemoryError;
        default: return torch.library_error;
    }
}

/* The library's words for a dtype that it does not have, and for those that it has. */
static const char unknown_dtype[] = "unknown dtype";
static const char *const dtype_words[][2] = {
    {"f32", "float32"}, {"f16", "float16"}, {"bf16", "bfloat16"}, {"i32", "int32"}, {"i64", "int64"},
};

/* `text` says "x is unknown dtype, but f32, f16 and bf16 are supported" of one of the arguments: what torch would say.
 * NULL without an exception: it says nothing of the kind. */
static PyObject *with_torch_dtypes(const binding_call *call, const char *text) {
    const char *place = strstr(text, unknown_dtype);
    PyObject *dtype = NULL, *words = NULL;
    for (int i = 0; place != NULL && call->names[i] != NULL; i++) {
        const size_t length = strlen(call->names[i]);
        if (place - text < (ptrdiff_t)length + 4 || strncmp(place - 4 - length, call->names[i], length) != 0) continue;
        dtype = ask_dtype(call->argv[i]);
        break;
    }
    if (dtype == NULL) return NULL;
    PyObject *before = PyUnicode_FromStringAndSize(text, place - text);
    if (before != NULL) words = PyUnicode_FromFormat("%U%S%s", before, dtype, place + sizeof unknown_dtype - 1);
    Py_XDECREF(before), Py_DECREF(dtype);
    for (size_t i = 0; words != NULL && i < sizeof dtype_words / sizeof *dtype_words; i++) {
        PyObject *all = PyUnicode_FromFormat(" %s", dtype_words[i][0]),
                 *by = PyUnicode_FromFormat(" %s", dtype_words[i][1]);
        PyObject *next = all == NULL || by == NULL ? NULL : PyUnicode_Replace(words, all, by, -1);
        Py_XDECREF(all), Py_XDECREF(by), Py_DECREF(words);
        words = next;
    }
    return words;
}

/* Most messages begin with the function's name already, or with its operator's. */
static PyObject *raise_status(const binding_call *call, liger_status status) {
    const char *text = liger_last_error();
    const size_t name = strcspn(text, ":");
    const int named = text[name] && strncmp(text, call->function, name) == 0;
    PyObject *words = status == LIGER_ERR_DTYPE ? with_torch_dtypes(call, text) : NULL;
    if (words != NULL && named) PyErr_SetObject(exception_of(status), words);
    else if (words != NULL) PyErr_Format(exception_of(status), "%s: %U", call->function, words);
    else if (PyErr_Occurred()) return NULL;
    else if (named) PyErr_SetString(exception_of(status), text);
    else PyErr_Format(exception_of(status), "%s: %s", call->function, *text ? text : liger_status_name((int)status));
    Py_XDECREF(words);
    return NULL;
}

static void forget_scratch(binding_call *call) { Py_CLEAR(call->scratch); }

PyObject *binding_abandon(binding_call *call) {
    forget_scratch(call);
    while (call->made_count > 0) Py_DECREF(call->made[--call->made_count]);
    return NULL;
}

PyObject *binding_fail(binding_call *call, liger_status status) {
    raise_status(call, status);
    return binding_abandon(call);
}

PyObject *binding_finish(binding_call *call, liger_status status) {
    if (status != LIGER_OK) return binding_fail(call, status);
    forget_scratch(call);
    if (call->made_count == 0) Py_RETURN_NONE;
    if (call->made_count == 1) return call->made[0];
    PyObject *tuple = PyTuple_New(call->made_count);
    if (tuple == NULL) return binding_abandon(call);
    for (int i = 0; i < call->made_count; i++) PyTuple_SetItem(tuple, i, call->made[i]);
    return tuple;
}

PyObject *binding_finish_bytes(binding_call *call, liger_status status, size_t bytes) {
    if (status != LIGER_OK) return binding_fail(call, status);
    (void)binding_abandon(call);
    return PyLong_FromSize_t(bytes);
}

/* ---- arguments ---- */

int binding_begin(binding_call *call, Py_ssize_t given, Py_ssize_t fewest, Py_ssize_t most) {
    call->device = NO_DEVICE;
    if (given >= fewest && given <= most) return 1;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, but %zd were given", call->function, most, given);
    return 0;
}

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

/* A dtype that the library does not have goes there as a number that it does not have either: it knows which dtypes the
 * argument takes, and says so; raise_status puts in the name. */
static int take_dtype(binding_call *call, int index, int32_t *dtype) {
    PyObject *found = ask_dtype(call->argv[index]);
    if (found == NULL) return 0;
    Py_DECREF(found); /* dtypes live for ever; only the address is compared */
    *dtype = UNKNOWN_DTYPE;
    for (int i = 0; i < DTYPES; i++) {
        if (found == torch.dtypes[i]) *dtype = i + 1;
    }
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

static int32_t dtype_of(const dl_tensor *seen) {
    if (seen->lanes != 1) return LIGER_DTYPE_NONE;
    switch (seen->code << 8 | seen->bits) {
        case DL_FLOAT << 8 | 32: return LIGER_F32;
        case DL_FLOAT << 8 | 16: return LIGER_F16;
        case DL_BFLOAT << 8 | 16: return LIGER_BF16;
        case DL_INT << 8 | 32: return LIGER_I32;
        case DL_INT << 8 | 64: return LIGER_I64;
        case DL_UINT << 8 | 8: return LIGER_U8;
        default: return LIGER_DTYPE_NONE;
    }
}

/* The whole view in one call; 0 without an exception where the five questions must be asked, if only to say what is
 * wrong. */
static int look_at_tensor(PyObject *object, liger_tensor *tensor, int64_t *device) {
    dl_tensor seen = {0};
    if (exchange->look(object, &seen) != 0) return PyErr_Clear(), 0;
    if (seen.device_type != DL_CPU && (seen.device_type != DL_CUDA || seen.device_id >= MAX_CUDA_DEVICES)) return 0;
    tensor->dtype = dtype_of(&seen);
    if (tensor->dtype == LIGER_DTYPE_NONE || seen.ndim > LIGER_MAX_DIMS || seen.byte_offset != 0) return 0;
    if (seen.ndim > 0 && seen.strides == NULL) return 0;
    *device = seen.device_type == DL_CPU ? LIGER_DEVICE_CPU : seen.device_id;
    tensor->ndim = seen.ndim;
    for (int i = 0; i < seen.ndim; i++) {
        tensor->shape[i] = seen.shape[i];
        tensor->stride[i] = seen.strides[i];
    }
    tensor->data = seen.data;
    return 1;
}

/* ---- arguments that are tensors, and wishes in their place ---- */

static size_t bytes_of(const liger_tensor *tensor) {
    size_t bytes = liger_dtype_size(tensor->dtype);
    for (int i = 0; i < tensor->ndim; i++) bytes *= (size_t)tensor->shape[i];
    return bytes;
}

static int is_wish(PyObject *object) { return (PyObject *)Py_TYPE(object) == torch.wish; }

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
    PyObject *made = results_make(wish, call->argv[source], call->device, given, tensor);
    if (made == NULL) return 0;
    call->made[call->made_count++] = made;
    if (!take_data(call, index, made, tensor)) return 0;
    const size_t bytes = bytes_of(tensor);
    if (call->device == LIGER_DEVICE_CPU && bytes >= HUGE_RESULT) results_ask_huge(tensor->data, bytes);
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
    if (exchange != NULL && look_at_tensor(object, tensor, &device)) {
        settle_strides(tensor);
        return agree_on_device(call, index, device) && settle_data(call, index, tensor);
    }
    if (!check_device(call, index) || !take_dtype(call, index, &tensor->dtype)) return 0;
    tensor->ndim = take_sizes(call, index, ask_shape(object), tensor->shape);
    if (tensor->ndim < 0 || take_sizes(call, index, ask_stride(object), tensor->stride) < 0) return 0;
    settle_strides(tensor);
    return take_data(call, index, object, tensor);
}

enum { ALIGNMENT = 256 };

int binding_scratch(binding_call *call, size_t needed, void **data, size_t *bytes) {
    int64_t address;
    if (needed == 0) return 1;
    PyObject *const like = call->argv[call->device_argument];
    if (!is_exact(like)) return refuse(call, "there is no tensor that says where scratch belongs");
    call->scratch = results_make_bytes(like, call->device, needed + ALIGNMENT);
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
    double wide;
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
    int64_t wide;
    if (!binding_int64(call, index, &wide)) return 0;
    if (wide < INT32_MIN || wide > INT32_MAX)
        return refuse(call, "%s is %lld, which does not fit into 32 bits", call->names[index], (long long)wide);
    *value = (int32_t)wide;
    return 1;
}

/* ---- contexts and streams ---- */

/* The context of a device, made at its first use and kept until the process ends. Runs under the GIL. */
static liger_status find_context(int32_t device, liger_context **context) {
    liger_context **kept = &contexts[device + 1];
    liger_status status = LIGER_OK;
    if (*kept == NULL) {
        liger_context_options options = LIGER_CONTEXT_OPTIONS_INIT;
        options.device = device;
        if (device == LIGER_DEVICE_CPU) torch_threads_lend(&options);
        status = liger_context_create(&options, kept);
    }
    *context = *kept;
    return status;
}

static int find_stream(binding_call *call) {
    if (torch.cuda_stream == NULL) torch.cuda_stream = PyObject_CallObject(torch.cuda_setup, NULL);
    if (torch.cuda_stream == NULL) return 0;
    PyObject *index = PyLong_FromLong(call->device);
    if (index == NULL) return 0;
    PyObject *address = PyObject_CallFunctionObjArgs(torch.cuda_stream, index, NULL);
    Py_DECREF(index);
    if (address == NULL) return 0;
    call->stream = PyLong_AsVoidPtr(address);
    Py_DECREF(address);
    return !(call->stream == NULL && PyErr_Occurred());
}

int binding_enter(binding_call *call) {
    if (call->device == NO_DEVICE) call->device = LIGER_DEVICE_CPU; /* no tensor at all: the library will say so */
    if (call->device >= 0 && !find_stream(call)) return 0;
    const liger_status status = find_context(call->device, &call->context);
    if (status == LIGER_OK) return 1;
    raise_status(call, status);
    return 0;
}

/* ---- facts, for reports ---- */

static PyObject *version(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    return PyUnicode_FromString(liger_version_string());
}

static PyObject *has_cuda_backend(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    return PyBool_FromLong(liger_has_cuda_backend());
}

/* isa_names() -> names of the instruction sets that this processor and this build have */
static PyObject *isa_names(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    PyObject *list = PyList_New(0);
    for (int isa = LIGER_ISA_BASE; list != NULL && isa <= LIGER_ISA_NEON; isa++) {
        if (!liger_has_isa(isa)) continue;
        PyObject *name = PyUnicode_FromString(liger_isa_name(isa));
        if (name == NULL || PyList_Append(list, name) != 0) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

/* context_facts(device) -> {"backend", "isa", "gemm", "threads"}; makes the context if there is none */
static PyObject *context_facts(PyObject *self, PyObject *argument) {
    (void)self;
    const binding_call call = {.function = "context_facts"};
    const long device = PyLong_AsLong(argument);
    if (device == -1 && PyErr_Occurred()) return NULL;
    if (device < LIGER_DEVICE_CPU || device >= MAX_CUDA_DEVICES)
        return refuse(&call, "there is no device %ld", device), (PyObject *)NULL;
    liger_context *context;
    const liger_status status = find_context((int32_t)device, &context);
    if (status != LIGER_OK) return raise_status(&call, status);
    return Py_BuildValue("{s:s,s:s,s:s,s:s}", "backend", liger_context_backend(context), "isa",
                         liger_isa_name(liger_context_isa(context)), "gemm", liger_context_gemm_provider(context),
                         "threads", device == LIGER_DEVICE_CPU ? torch_threads_describe() : "");
}

/* ask_for_huge_pages(address, bytes): for a new tensor that was not made here */
static PyObject *ask_for_huge_pages(PyObject *self, PyObject *arguments) {
    (void)self;
    unsigned long long address, bytes;
    if (!PyArg_ParseTuple(arguments, "KK", &address, &bytes)) return NULL;
    results_ask_huge((void *)(uintptr_t)address, (size_t)bytes);
    Py_RETURN_NONE;
}

/* ---- where a call is made from ---- */

/* The dispatch keys that a thread adds to every operator, where torch's dispatcher keeps them, zero for what it does of
 * itself: a dispatch mode, functorch, torch.jit.trace and inference mode each change the first word. Looked up once per
 * thread. */
static _Thread_local const uint64_t *local_keys;
static int watching;

static const uint64_t *find_local_keys(void) {
    if (local_keys == NULL) local_keys = torch_variable("_ZN3c104impl26raw_local_dispatch_key_setE");
    return local_keys;
}

/* watch_dispatch(bool): whether is_usual() may look; answers whether torch lets it. */
static PyObject *watch_dispatch(PyObject *self, PyObject *on) {
    (void)self;
    watching = on == Py_True && find_local_keys() != NULL;
    return PyBool_FromLong(watching);
}

/* is_usual(): no mode, no transform, no tracing on this thread. False also where nobody can know: ask torch then. */
static PyObject *is_usual(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    return PyBool_FromLong(watching && find_local_keys() != NULL && *local_keys == 0);
}

static PyMethodDef fixed_methods[] = {
    {"watch_dispatch", watch_dispatch, METH_O, NULL},
    {"is_usual", is_usual, METH_NOARGS, NULL},
    {"setup", setup, METH_VARARGS, NULL},
    {"version", version, METH_NOARGS, NULL},
    {"has_cuda_backend", has_cuda_backend, METH_NOARGS, NULL},
    {"isa_names", isa_names, METH_NOARGS, NULL},
    {"context_facts", context_facts, METH_O, NULL},
    {"ask_for_huge_pages", ask_for_huge_pages, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "_binding",
    "The C library, one function per operator.",
    -1,
    fixed_methods,
    NULL,
    NULL,
    NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__binding(void);
PyMODINIT_FUNC PyInit__binding(void) {
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddFunctions(made, binding_operators) != 0) Py_CLEAR(made);
    return made;
}
