/* host_pool.c - see host_pool.h. */
#include "tests/harness/host_pool.h"

void host_pool_backwards(void *user, int64_t tasks, liger_task task, void *argument) {
    (void)user;
    for (int64_t i = tasks - 1; i >= 0; i--) task(argument, i);
}

int32_t host_pool_threads(void *user) {
    (void)user;
    return 5;
}
