/* fail.h - the one way to refuse: a status and a sentence, never one without the other. Internal. */
#ifndef LIGER_CORE_FAIL_H
#define LIGER_CORE_FAIL_H

#include "liger/core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Stores the sentence for liger_last_error() and returns `status`, so that a check is one line. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
liger_status
liger_fail(liger_status status, const char *format, ...);

#ifdef __cplusplus
}
#endif

/* A fact that must hold before anything is launched or written. */
#define LIGER_REQUIRE(fact, status, ...)                                                                               \
    do {                                                                                                               \
        if (!(fact)) return liger_fail((status), __VA_ARGS__);                                                         \
    } while (0)

#define LIGER_TRY(call)                                                                                                \
    do {                                                                                                               \
        const liger_status liger_try_status = (call);                                                                  \
        if (liger_try_status != LIGER_OK) return liger_try_status;                                                     \
    } while (0)

#endif
