/* parallel.h - the only way a CPU kernel uses more than one thread.
 *
 * liger_parallel_for splits [0, n) into fixed chunks of `grain` elements - a function of the problem, never of the number
 * of threads, so that partial results are the same for any thread count - and runs chunk(argument, begin, end) on them.
 * A loop of one chunk runs on the calling thread. */
#ifndef LIGER_CPU_PARALLEL_H
#define LIGER_CPU_PARALLEL_H

#include <stdint.h>

#include "liger/core/context.h"

typedef void (*liger_chunk)(void *argument, int64_t begin, int64_t end);

void liger_parallel_for(liger_context *context, int64_t n, int64_t grain, liger_chunk chunk, void *argument);
/* How many chunks can run at once now (at least 1). */
int32_t liger_thread_count(liger_context *context);

#endif
