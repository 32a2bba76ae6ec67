/* host_pool.h - a host's thread pool as a context may be lent one; this one runs tasks backwards on the calling thread,
 * so that a kernel which relies on the order of its tasks is found out. */
#ifndef TESTS_HARNESS_HOST_POOL_H
#define TESTS_HARNESS_HOST_POOL_H

#include "liger/core/context.h"

void host_pool_backwards(void *user, int64_t tasks, liger_task task, void *argument);
int32_t host_pool_threads(void *user); /* 5 */

#endif
