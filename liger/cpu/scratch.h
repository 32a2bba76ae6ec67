/* scratch.h - memory in which a CPU kernel packs panels: one block per thread. Internal.
 *
 * The block only grows, to the largest size ever asked for (a few MB: callers block their loops, so the size does not
 * follow the problem), and is freed when its thread ends. Allocating it per call would cost more than a small matrix
 * product: fresh pages are faulted in one by one. */
#ifndef LIGER_CPU_SCRATCH_H
#define LIGER_CPU_SCRATCH_H

#include <stddef.h>

/* This thread's block, at least `bytes` large and aligned to 4096; NULL if there is no memory. The contents are
 * undefined, and the next call on the same thread may move the block. */
void *cpu_thread_scratch(size_t bytes);

#endif
