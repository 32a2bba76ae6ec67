/* context.h - where a call runs: one device, one kernel table, fixed when it is made.
 *
 * A context may be used by several threads at once. It owns no memory of the device's: outputs and workspaces belong to
 * the caller. What is shared by the process is found once and never changes an answer: libraries, and what kernels need. */
#ifndef LIGER_CORE_CONTEXT_H
#define LIGER_CORE_CONTEXT_H

#include <stddef.h>
#include <stdint.h>

#include "liger/core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct liger_context liger_context;
typedef void *liger_stream; /* a cudaStream_t; NULL is the default stream; ignored on the CPU */

enum { LIGER_DEVICE_CPU = -1 }; /* 0, 1, ... are CUDA devices */

/* Instruction sets of the CPU backend, in ascending order of preference on x86-64. */
typedef enum liger_isa {
    LIGER_ISA_AUTO = 0,       /* the best that this processor has, or what LIGER_CPU_ISA names */
    LIGER_ISA_BASE = 1,       /* x86-64 with SSE2, or plain C elsewhere */
    LIGER_ISA_AVX2 = 2,       /* AVX2, FMA, F16C */
    LIGER_ISA_AVX512 = 3,     /* F, BW, DQ, VL */
    LIGER_ISA_AVX512BF16 = 4, /* ... and AVX512-BF16: bf16 matrix products */
    LIGER_ISA_AMX = 5,        /* ... and AMX-TILE, AMX-BF16: bf16 matrix products */
    LIGER_ISA_NEON = 6        /* aarch64 */
} liger_isa;

/* One task of a parallel loop. */
typedef void (*liger_task)(void *argument, int64_t index);

typedef struct liger_context_options {
    size_t size;     /* sizeof(liger_context_options): set by LIGER_CONTEXT_OPTIONS_INIT */
    int32_t device;  /* LIGER_DEVICE_CPU or a CUDA device number */
    int32_t isa;     /* liger_isa; CPU only. An ISA that the machine lacks is LIGER_ERR_DEVICE */
    int32_t threads; /* CPU threads; 0 = LIGER_THREADS, or else all that the process may use */
    int32_t reserved;
    /* A host with a thread pool of its own lends it: parallel_for calls task(argument, i) once for each i in [0, tasks),
     * in any order and on any thread, and returns when all are done; thread_count answers how many tasks can run at
     * once, and is asked at every call. Both or neither. */
    void (*parallel_for)(void *user, int64_t tasks, liger_task task, void *argument);
    int32_t (*thread_count)(void *user);
    void *user;
} liger_context_options;

#define LIGER_CONTEXT_OPTIONS_INIT                                                                                     \
    { sizeof(liger_context_options), LIGER_DEVICE_CPU, LIGER_ISA_AUTO, 0, 0, 0, 0, 0 }

/* Makes a context. options == NULL means all defaults (the CPU). On failure *context is NULL. */
LIGER_API liger_status liger_context_create(const liger_context_options *options, liger_context **context);
/* NULL is fine. No call may be using the context. */
LIGER_API void liger_context_destroy(liger_context *context);

/* Facts of a context, for reports; never NULL. NULL is no context: what they say then, no context says. */

/* LIGER_DEVICE_CPU or a CUDA device number. NULL: -2. */
LIGER_API int32_t liger_context_device(const liger_context *context);
/* The liger_isa of a CPU context. A CUDA context and NULL: LIGER_ISA_AUTO. */
LIGER_API int32_t liger_context_isa(const liger_context *context);
/* "cpu-avx512", "cuda", ... NULL: "none". */
LIGER_API const char *liger_context_backend(const liger_context *context);
/* Where matrix products come from: the BLAS or cuBLASLt that was found, with its path, or why there is none. */
LIGER_API const char *liger_context_gemm_provider(liger_context *context);

/* 1 if this build has the CUDA backend. */
LIGER_API int liger_has_cuda_backend(void);
/* 1 if this processor can run the ISA and the build has it. */
LIGER_API int liger_has_isa(int isa);
LIGER_API const char *liger_isa_name(int isa);

#ifdef __cplusplus
}
#endif
#endif
