/* errors.c - from what is wrong to a Python exception in words. */
#include "errors.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "torch_functions.h"

int refuse(const binding_call *call, const char *format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    PyErr_Format(torch.argument_error, "%s: %s", call->function, text);
    return 0;
}

int wrong_type(const binding_call *call, int index, const char *wanted) {
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
    {"f32", "float32"}, {"f16", "float16"}, {"bf16", "bfloat16"}, {"i32", "int32"},
    {"i64", "int64"},   {"u8", "uint8"},    {"i8", "int8"},       {"bool", "bool"},
};

/* `text` may say "x is unknown dtype, but ..." of one of the arguments: then with the dtype that torch has for it. */
static PyObject *with_known_dtype(const binding_call *call, const char *text) {
    const char *place = strstr(text, unknown_dtype);
    PyObject *dtype = NULL;
    for (int i = 0; place != NULL && call->names[i] != NULL; i++) {
        const size_t length = strlen(call->names[i]);
        if (place - text < (ptrdiff_t)length + 4 || strncmp(place - 4 - length, call->names[i], length) != 0) continue;
        dtype = ask_dtype(call->argv[i]);
        break;
    }
    if (dtype == NULL) return PyErr_Occurred() ? NULL : PyUnicode_FromString(text);
    PyObject *before = PyUnicode_FromStringAndSize(text, place - text), *words = NULL;
    if (before != NULL) words = PyUnicode_FromFormat("%U%S%s", before, dtype, place + sizeof unknown_dtype - 1);
    Py_XDECREF(before), Py_DECREF(dtype);
    return words;
}

/* `words`, which it takes over, with torch's word for every dtype behind `lead`. */
static PyObject *with_torch_words(PyObject *words, const char *lead, const char *torch_lead) {
    for (size_t i = 0; words != NULL && i < sizeof dtype_words / sizeof *dtype_words; i++) {
        PyObject *all = PyUnicode_FromFormat("%s%s", lead, dtype_words[i][0]),
                 *by = PyUnicode_FromFormat("%s%s", torch_lead, dtype_words[i][1]);
        PyObject *next = all == NULL || by == NULL ? NULL : PyUnicode_Replace(words, all, by, -1);
        Py_XDECREF(all), Py_XDECREF(by), Py_DECREF(words);
        words = next;
    }
    return words;
}

/* "x is f64, but f32, f16 and bf16 are supported", as torch would say it. */
static PyObject *with_torch_dtypes(const binding_call *call, const char *text) {
    return with_torch_words(with_torch_words(with_known_dtype(call, text), " is ", " is torch."), " ", " ");
}

/* Most messages begin with the function's name already, or with its operator's. */
PyObject *raise_status(const binding_call *call, liger_status status) {
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
