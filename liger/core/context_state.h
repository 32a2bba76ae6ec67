/* context_state.h - what is inside a context. Internal. */
#ifndef LIGER_CORE_CONTEXT_STATE_H
#define LIGER_CORE_CONTEXT_STATE_H

#include <stdbool.h>

#include "liger/core/context.h"
#include "liger/core/kernel_table.h"

struct liger_context {
    const liger_kernel_table *kernels;
    int32_t device;
    int32_t isa;
    int32_t multiprocessors;      /* CUDA; 0 on the CPU */
    int32_t threads;              /* CPU: threads of our own pool, when the host lends none */
    int64_t loss_workspace_bytes; /* of a linear loss: LIGER_LOSS_WORKSPACE_MB; 0: nobody has named it */
    bool synchronous;             /* LIGER_SYNC=1: wait after every CUDA launch, so that an error names its operator */
    void (*parallel_for)(void *user, int64_t tasks, liger_task task, void *argument);
    int32_t (*thread_count)(void *user);
    void *user;
    struct cpu_state *cpu;   /* CPU: thread pool and BLAS */
    struct cuda_state *cuda; /* CUDA: device properties, cuBLASLt */
};

#ifdef __cplusplus
extern "C" {
#endif

/* The backends' part of creating and destroying a context. */
liger_status cpu_context_init(liger_context *context, const liger_context_options *options);
void cpu_context_close(liger_context *context);
const char *cpu_gemm_provider(liger_context *context);
liger_status cuda_context_init(liger_context *context, const liger_context_options *options);
void cuda_context_close(liger_context *context);
const char *cuda_gemm_provider(liger_context *context);
liger_status cuda_gemm_ready(liger_context *context);

/* UNSUPPORTED if there is nothing to multiply matrices with: for operators of several steps, which ask before the first. */
liger_status liger_gemm_ready(liger_context *context);

#ifdef __cplusplus
}
#endif
#endif
