/* watched_kernels.c - see watched_kernels.h. */
#include "tests/harness/watched_kernels.h"

#include "liger/core/context_state.h"

#define LIGER_COMPOSITE(op, room)
#define LIGER_OP(op, room) LIGER_KERNEL(op##_forward, room) LIGER_KERNEL(op##_backward, room)

enum {
#define LIGER_KERNEL(kernel, room) WATCHED_##kernel,
#include "liger/ops/ops.def"
#undef LIGER_KERNEL
    WATCHED_KERNELS
};
_Static_assert(WATCHED_KERNELS <= 64, "a kernel_set has a bit for each");

static const liger_kernel_table *under;
static kernel_set called;

#define LIGER_KERNEL(kernel, room)                                                                                     \
    static liger_status watch_##kernel(liger_context *context, const struct kernel##_problem *problem,                 \
                                       liger_stream stream) {                                                          \
        called |= (kernel_set)1 << WATCHED_##kernel;                                                                   \
        return under->kernel(context, problem, stream);                                                                \
    }
#include "liger/ops/ops.def"
#undef LIGER_KERNEL

static liger_kernel_table watching = {
#define LIGER_KERNEL(kernel, room) .kernel = watch_##kernel,
#include "liger/ops/ops.def"
#undef LIGER_KERNEL
};

void watch_kernels(liger_context *context) {
    under = context->kernels;
    watching.backend = under->backend;
    context->kernels = &watching;
    called = 0;
}

const liger_kernel_table *watched_kernels(void) { return under; }

kernel_set take_called_kernels(void) {
    const kernel_set all = called;
    called = 0;
    return all;
}

bool same_kernels(kernel_set kernels, const liger_kernel_table *a, const liger_kernel_table *b) {
    bool same = true;
#define LIGER_KERNEL(kernel, room)                                                                                     \
    if (kernels >> WATCHED_##kernel & 1) same = same && a->kernel == b->kernel;
#include "liger/ops/ops.def"
#undef LIGER_KERNEL
    return same;
}
