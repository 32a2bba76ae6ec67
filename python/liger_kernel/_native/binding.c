/* binding.c - the life of a call, from its start to an answer or an exception, and the module. */
#include "binding.h"

#include "errors.h"
#include "torch_functions.h"

int binding_begin(binding_call *call, Py_ssize_t given, Py_ssize_t fewest, Py_ssize_t most) {
    call->device = NO_DEVICE;
    if (given >= fewest && given <= most) return 1;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, but %zd were given", call->function, most, given);
    return 0;
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

/* ask_for_huge_pages(address, bytes): for a new tensor that was not made here */
static PyObject *ask_for_huge_pages(PyObject *self, PyObject *arguments) {
    (void)self;
    unsigned long long address, bytes;
    if (!PyArg_ParseTuple(arguments, "KK", &address, &bytes)) return NULL;
    host_memory_ask_huge((void *)(uintptr_t)address, (size_t)bytes);
    Py_RETURN_NONE;
}

/* is_host_memory_taken_back(folder): see host_memory.c; for reports */
static PyObject *is_host_memory_taken_back(PyObject *self, PyObject *arguments) {
    (void)self;
    const char *folder;
    if (!PyArg_ParseTuple(arguments, "s", &folder)) return NULL;
    return PyBool_FromLong(host_memory_is_taken_back(folder));
}

static PyMethodDef fixed_methods[] = {
    {"watch_dispatch", binding_watch_dispatch, METH_O, NULL},
    {"is_usual", binding_is_usual, METH_NOARGS, NULL},
    {"setup", torch_functions_setup, METH_VARARGS, NULL},
    {"new", (PyCFunction)(void (*)(void))binding_new, METH_FASTCALL, NULL},
    {"version", version, METH_NOARGS, NULL},
    {"has_cuda_backend", has_cuda_backend, METH_NOARGS, NULL},
    {"isa_names", isa_names, METH_NOARGS, NULL},
    {"context_facts", binding_context_facts, METH_O, NULL},
    {"ask_for_huge_pages", ask_for_huge_pages, METH_VARARGS, NULL},
    {"is_host_memory_taken_back", is_host_memory_taken_back, METH_VARARGS, NULL},
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
