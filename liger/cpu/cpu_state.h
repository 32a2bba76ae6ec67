/* cpu_state.h - what a CPU context owns. Internal. */
#ifndef LIGER_CPU_CPU_STATE_H
#define LIGER_CPU_CPU_STATE_H

#include <stdint.h>

struct cpu_pool;

struct cpu_state {
    struct cpu_pool *pool; /* made at the first parallel loop; NULL when the host lends its threads */
};

int32_t cpu_pool_default_threads(void);
void cpu_pool_close(struct cpu_pool *pool);

#endif
