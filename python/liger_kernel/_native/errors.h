/* errors.h - the binding's refusals: each sets an exception in words. */
#ifndef LIGER_BINDING_ERRORS_H
#define LIGER_BINDING_ERRORS_H

#include "binding.h"

/* "rms_norm_forward: " and the text, as LigerArgumentError; 0. */
int refuse(const binding_call *call, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* TypeError: the argument is not what is wanted; 0. */
int wrong_type(const binding_call *call, int index, const char *wanted);
/* The exception that belongs to a status, in the library's words; NULL. */
PyObject *raise_status(const binding_call *call, liger_status status);

#endif
