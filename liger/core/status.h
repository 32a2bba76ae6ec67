/* status.h - what a call answers, and the sentence that explains it.
 *
 * Every function of the library that can fail returns a liger_status. The values are part of the ABI: they are pinned
 * and never reused. The text of the last failure on the calling thread is kept until the next failing call. */
#ifndef LIGER_CORE_STATUS_H
#define LIGER_CORE_STATUS_H

#if defined(__GNUC__)
#define LIGER_API __attribute__((visibility("default")))
#else
#define LIGER_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum liger_status {
    LIGER_OK = 0,
    LIGER_ERR_ARGUMENT = 1,    /* a scalar or an option is outside its range */
    LIGER_ERR_SHAPE = 2,       /* sizes of two arguments do not fit each other */
    LIGER_ERR_DTYPE = 3,       /* a dtype is not supported, or two dtypes do not fit each other */
    LIGER_ERR_LAYOUT = 4,      /* strides or an overlap that the operator does not accept */
    LIGER_ERR_TARGET = 5,      /* a class index outside [0, vocab) (CPU only) */
    LIGER_ERR_DEVICE = 6,      /* no such device, or it cannot be used */
    LIGER_ERR_WORKSPACE = 7,   /* the workspace is smaller than the operator needs */
    LIGER_ERR_UNSUPPORTED = 8, /* valid, but this build or this device cannot do it */
    LIGER_ERR_CUDA = 9,        /* CUDA or cuBLASLt reported an error */
    LIGER_ERR_OOM = 10,        /* the host ran out of memory while a context was made */
    LIGER_ERR_ABI = 11,        /* an args struct of a size this library does not know */
    LIGER_ERR_INTERNAL = 12    /* a defect of the library */
} liger_status;

/* Short name of a status, e.g. "LIGER_ERR_SHAPE"; "unknown status" for any other number. Never NULL. */
LIGER_API const char *liger_status_name(int status);

/* The sentence that explains the last failure on this thread; "" if there was none. Never NULL; the text stays valid
 * until the next failing call on the same thread. A call that succeeds does not clear it. */
LIGER_API const char *liger_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
