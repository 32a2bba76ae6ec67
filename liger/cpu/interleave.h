/* interleave.h - blocks of bytes moved by all threads. Internal. */
#ifndef LIGER_CPU_INTERLEAVE_H
#define LIGER_CPU_INTERLEAVE_H

#include <stddef.h>

#include "liger/core/context.h"

/* A matrix of rows x cols blocks, stored row by row, is then stored column by column, in the same memory. OOM: it needs 9 bytes for
 * each block. */
liger_status cpu_interleave(liger_context *context, void *data, int64_t rows, int64_t cols, size_t block_bytes);

void cpu_copy(liger_context *context, void *to, const void *from, size_t bytes);

#endif
