/* binding.h - what the generated functions of the binding are made of.
 *
 * One call is: begin, one converter per argument in the order of the args struct, enter, the library's function, finish.
 * A converter that fails has set a Python exception and answers 0; then the call is abandoned.
 *
 * A tensor argument may be a wish instead of a tensor (_native.LIKE and its siblings): the binding makes a new tensor in
 * its place and the call answers what it has made, in the order of the arguments. A workspace that is wished for is made
 * when everything else is known, and given back after the call. */
#ifndef LIGER_BINDING_H
#define LIGER_BINDING_H

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>

#include "liger/core/context.h"
#include "liger/core/tensor.h"
#include "liger/core/version.h"

enum { NO_DEVICE = -2, MAX_MADE = 8, FOLLOWED = 4 };

typedef struct binding_call {
    const char *function;     /* "rms_norm_forward" */
    const char *const *names; /* of its arguments */
    PyObject *const *argv;
    int32_t device;          /* of the first tensor; NO_DEVICE before there is one */
    int32_t device_argument; /* which argument that was */
    liger_context *context;
    liger_stream stream;
    const liger_tensor *followed[FOLLOWED]; /* the first arguments, for results made in their likeness */
    PyObject *made[MAX_MADE];
    int made_count;
    int looked_for_quick; /* torch_quick_empty() of the device, asked once, at the first wish */
    PyObject *quick;
    int wants_scratch;
    PyObject *scratch;
} binding_call;

int binding_begin(binding_call *call, Py_ssize_t given, Py_ssize_t fewest, Py_ssize_t most);
int binding_tensor(binding_call *call, int index, liger_tensor *tensor);
int binding_workspace(binding_call *call, int index, void **data, size_t *bytes);
int binding_float(const binding_call *call, int index, float *value);
int binding_double(const binding_call *call, int index, double *value);
int binding_int32(const binding_call *call, int index, int32_t *value);
int binding_int64(const binding_call *call, int index, int64_t *value);
/* Finds the context of the call's device and the stream that torch would use now. */
int binding_enter(binding_call *call);
/* Memory for a workspace that was wished for, on the call's device. */
int binding_scratch(binding_call *call, size_t needed, void **data, size_t *bytes);
/* What was made (None, a tensor, or a tuple of tensors), or the exception that belongs to the status. */
PyObject *binding_finish(binding_call *call, liger_status status);
PyObject *binding_finish_bytes(binding_call *call, liger_status status, size_t bytes);
/* The exception that belongs to the status; NULL. */
PyObject *binding_fail(binding_call *call, liger_status status);
/* NULL: a converter has set the exception. */
PyObject *binding_abandon(binding_call *call);

/* Generated from liger/ops/ops.def and the public headers; ends with a row of NULLs. */
extern PyMethodDef binding_operators[];

/* What Python calls besides the operators.
 * arguments.c: new(like, shape, dtype or None for that of `like`): contiguous memory for a result, on the device of `like`. For
 * results that no wish describes, in a fifth of torch.empty's time. */
PyObject *binding_new(PyObject *self, PyObject *const *argv, Py_ssize_t argc);
/* contexts.c: context_facts(device) -> {"backend", "isa", "gemm", "threads"}; makes the context if there is none. */
PyObject *binding_context_facts(PyObject *self, PyObject *device);
/* dispatch_word.c: watch_dispatch(bool): whether is_usual() may look; answers whether torch lets it. */
PyObject *binding_watch_dispatch(PyObject *self, PyObject *on);
/* is_usual(): no mode, no transform, no tracing on this thread. False also where nobody can know: ask torch then. */
PyObject *binding_is_usual(PyObject *self, PyObject *ignored);

/* torch_threads.c: lends torch's OpenMP team to a CPU context. */
void torch_threads_lend(liger_context_options *options);
const char *torch_threads_describe(void);
/* A variable of torch's c10 by its symbol, this thread's if each has one; or NULL. */
void *torch_variable(const char *name);

#endif
