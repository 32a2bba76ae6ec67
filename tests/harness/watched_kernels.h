/* watched_kernels.h - which kernels a function's calls come to: a context gets a table that takes note and calls on. */
#ifndef TESTS_HARNESS_WATCHED_KERNELS_H
#define TESTS_HARNESS_WATCHED_KERNELS_H

#include <stdbool.h>

#include "liger/core/kernel_table.h"

/* The kernels of ops.def that have been called, a bit each. */
typedef uint64_t kernel_set;

/* Of one context at a time. */
void watch_kernels(liger_context *context);
const liger_kernel_table *watched_kernels(void);
/* Those that have been called since the last time. */
kernel_set take_called_kernels(void);

/* Whether all of these kernels are the same functions in both tables. */
bool same_kernels(kernel_set kernels, const liger_kernel_table *a, const liger_kernel_table *b);

#endif
