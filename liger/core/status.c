/* status.c - the text behind a status. Thread-local and of fixed size: a failing call allocates nothing. */
#include "liger/core/status.h"

#include <stdarg.h>
#include <stdio.h>

#include "liger/core/fail.h"

enum { LAST_ERROR_BYTES = 512 };
static _Thread_local char last_error[LAST_ERROR_BYTES];

liger_status liger_fail(liger_status status, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(last_error, sizeof last_error, format, values);
    va_end(values);
    return status;
}

const char *liger_last_error(void) { return last_error; }

const char *liger_status_name(int status) {
    switch ((liger_status)status) {
        case LIGER_OK: return "LIGER_OK";
        case LIGER_ERR_ARGUMENT: return "LIGER_ERR_ARGUMENT";
        case LIGER_ERR_SHAPE: return "LIGER_ERR_SHAPE";
        case LIGER_ERR_DTYPE: return "LIGER_ERR_DTYPE";
        case LIGER_ERR_LAYOUT: return "LIGER_ERR_LAYOUT";
        case LIGER_ERR_TARGET: return "LIGER_ERR_TARGET";
        case LIGER_ERR_DEVICE: return "LIGER_ERR_DEVICE";
        case LIGER_ERR_WORKSPACE: return "LIGER_ERR_WORKSPACE";
        case LIGER_ERR_UNSUPPORTED: return "LIGER_ERR_UNSUPPORTED";
        case LIGER_ERR_CUDA: return "LIGER_ERR_CUDA";
        case LIGER_ERR_OOM: return "LIGER_ERR_OOM";
        case LIGER_ERR_ABI: return "LIGER_ERR_ABI";
        case LIGER_ERR_INTERNAL: return "LIGER_ERR_INTERNAL";
    }
    return "unknown status";
}
