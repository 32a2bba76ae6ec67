/* contexts.c - the context and the stream of a call. */
#include "errors.h"
#include "torch_functions.h"

static liger_context *contexts[MAX_CUDA_DEVICES + 1]; /* index: device + 1 */

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
    if (!torch_cuda_ready()) return 0;
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

PyObject *binding_context_facts(PyObject *self, PyObject *argument) {
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
