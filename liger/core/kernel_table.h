/* kernel_table.h - one function pointer per kernel slot of ops.def. Internal.
 *
 * A backend fills one table (CUDA), or one per instruction set (CPU). Dispatch is one indirect call:
 * context->kernels->rms_norm_forward(context, &problem, stream). A kernel trusts its problem: the room's .c file has
 * checked it. */
#ifndef LIGER_CORE_KERNEL_TABLE_H
#define LIGER_CORE_KERNEL_TABLE_H

#include "liger/core/context.h"

#define LIGER_SLOT(slot)                                                                                               \
    struct slot##_problem;                                                                                             \
    typedef liger_status slot##_kernel(liger_context *, const struct slot##_problem *, liger_stream);
#define LIGER_OP(op, room) LIGER_SLOT(op##_forward) LIGER_SLOT(op##_backward)
#define LIGER_KERNEL(kernel, room) LIGER_SLOT(kernel)
#define LIGER_COMPOSITE(op, room)
#include "liger/ops/ops.def"
#undef LIGER_OP
#undef LIGER_KERNEL
#undef LIGER_COMPOSITE
#undef LIGER_SLOT

typedef struct liger_kernel_table {
    const char *backend;
#define LIGER_OP(op, room)                                                                                             \
    op##_forward_kernel *op##_forward;                                                                                 \
    op##_backward_kernel *op##_backward;
#define LIGER_KERNEL(kernel, room) kernel##_kernel *kernel;
#define LIGER_COMPOSITE(op, room)
#include "liger/ops/ops.def"
#undef LIGER_OP
#undef LIGER_KERNEL
#undef LIGER_COMPOSITE
} liger_kernel_table;

#endif
