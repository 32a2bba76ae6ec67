/* dispatch_word.c - where a call is made from: under torch's modes, transforms and traces, or under none. */
#include "binding.h"

/* The dispatch keys that a thread adds to every operator, where torch's dispatcher keeps them, zero for what it does of
 * itself: a dispatch mode, functorch, torch.jit.trace and inference mode each change the first word. Looked up once per
 * thread. */
static _Thread_local const uint64_t *local_keys;
static int watching;

static const uint64_t *find_local_keys(void) {
    if (local_keys == NULL) local_keys = torch_variable("_ZN3c104impl26raw_local_dispatch_key_setE");
    return local_keys;
}

PyObject *binding_watch_dispatch(PyObject *self, PyObject *on) {
    (void)self;
    watching = on == Py_True && find_local_keys() != NULL;
    return PyBool_FromLong(watching);
}

PyObject *binding_is_usual(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    return PyBool_FromLong(watching && find_local_keys() != NULL && *local_keys == 0);
}
