/* torch_functions.c - what the binding keeps of torch, and how a tensor is asked.
 *
 * Nothing here knows torch's headers or version. A tensor is asked through its Python methods; what a call would cost by
 * name (a type lookup, a bound method, an argument tuple) is paid once at start-up: the C functions behind data_ptr,
 * get_device and stride and the getters behind dtype, shape and is_cuda are kept and called directly.
 *
 * Where torch offers DLPack's C exchange table (DLPack 1.3, a stable ABI), one call answers all questions about such an
 * object, in a tenth of the time. It is used after it has answered right for a sample. */
#include "torch_functions.h"

struct torch_functions torch;

/* DLPack 1.3, as far as it is used here. */
enum { DL_CPU = 1, DL_CUDA = 2, DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_BOOL = 6 };

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

/* NULL stands for None from then on. */
static int keep_quick(PyObject *functions) {
    PyObject **const places[] = {&torch.quick_cpu, &torch.quick_cuda};
    for (int i = 0; i < 2; i++) {
        *places[i] = PySequence_GetItem(functions, i);
        if (*places[i] == NULL) return 0;
        if (*places[i] == Py_None) Py_CLEAR(*places[i]);
    }
    return 1;
}

PyObject *torch_functions_setup(PyObject *self, PyObject *arguments) {
    (void)self;
    PyObject *dtypes, *sample, *quick;
    if (!PyArg_ParseTuple(arguments, "OOOOOOOOOOOO:setup", &torch.tensor_base, &torch.tensor, &torch.parameter, &dtypes,
                          &torch.argument_error, &torch.library_error, &torch.cuda_setup, &sample, &torch.wish,
                          &torch.empty_like, &torch.empty_strided, &quick))
        return NULL;
    Py_INCREF(torch.tensor_base), Py_INCREF(torch.tensor), Py_INCREF(torch.parameter);
    Py_INCREF(torch.argument_error), Py_INCREF(torch.library_error), Py_INCREF(torch.cuda_setup);
    for (int i = 0; i < DTYPES; i++) {
        torch.dtypes[i] = PySequence_GetItem(dtypes, i);
        if (torch.dtypes[i] == NULL) return NULL;
    }
    Py_INCREF(torch.wish), Py_INCREF(torch.empty_like), Py_INCREF(torch.empty_strided);
    if (!keep_quick(quick)) return NULL;
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

static int32_t dtype_of(const dl_tensor *seen) {
    if (seen->lanes != 1) return LIGER_DTYPE_NONE;
    switch (seen->code << 8 | seen->bits) {
        case DL_FLOAT << 8 | 32: return LIGER_F32;
        case DL_FLOAT << 8 | 16: return LIGER_F16;
        case DL_BFLOAT << 8 | 16: return LIGER_BF16;
        case DL_INT << 8 | 32: return LIGER_I32;
        case DL_INT << 8 | 64: return LIGER_I64;
        case DL_UINT << 8 | 8: return LIGER_U8;
        case DL_INT << 8 | 8: return LIGER_I8;
        case DL_BOOL << 8 | 8: return LIGER_BOOL;
        default: return LIGER_DTYPE_NONE;
    }
}

int torch_look(PyObject *object, liger_tensor *tensor, int64_t *device) {
    dl_tensor seen = {0};
    if (exchange == NULL || exchange->look(object, &seen) != 0) return PyErr_Clear(), 0;
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

int torch_cuda_ready(void) {
    if (torch.cuda_stream != NULL) return 1;
    PyObject *functions = PyObject_CallObject(torch.cuda_setup, NULL);
    if (functions == NULL) return 0;
    torch.cuda_current = PySequence_GetItem(functions, 1);
    torch.cuda_stream = torch.cuda_current == NULL ? NULL : PySequence_GetItem(functions, 0);
    Py_DECREF(functions);
    return torch.cuda_stream != NULL;
}

static int is_current(int32_t device) {
    PyObject *index = torch_cuda_ready() ? PyObject_CallNoArgs(torch.cuda_current) : NULL;
    const long current = index == NULL ? -1 : PyLong_AsLong(index);
    Py_XDECREF(index);
    PyErr_Clear(); /* the other way to new memory will say what is wrong */
    return current == device;
}

PyObject *torch_quick_empty(int32_t device) {
    if (device == LIGER_DEVICE_CPU) return torch.quick_cpu;
    return torch.quick_cuda != NULL && is_current(device) ? torch.quick_cuda : NULL;
}
