/* args.h - how an args struct of any age enters the library. Internal.
 *
 * An args struct begins with its own size and grows only by appending. A caller built against an older header passes a
 * shorter struct: the missing tail reads as zero, which by rule means the old behaviour. A longer struct than this
 * library knows is accepted only if the unknown tail is zero. */
#ifndef LIGER_CORE_ARGS_H
#define LIGER_CORE_ARGS_H

#include <stddef.h>

#include "liger/core/fail.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Copies `source` to `target` of `size` bytes; ABI, naming `what`, if that is not possible. */
liger_status liger_args_import(void *target, size_t size, const void *source, const char *what);

#ifdef __cplusplus
}
#endif
#endif
