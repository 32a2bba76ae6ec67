/* cuda_table.c - the kernel table of the CUDA backend. */
#include "liger/core/kernel_table.h"

#define LIGER_OP(op, room)                                                                                             \
    op##_forward_kernel op##_forward_cuda;                                                                             \
    op##_backward_kernel op##_backward_cuda;
#define LIGER_KERNEL(kernel, room) kernel##_kernel kernel##_cuda;
#define LIGER_COMPOSITE(op, room)
#include "liger/ops/ops.def"
#undef LIGER_OP
#undef LIGER_KERNEL

extern const liger_kernel_table liger_table_cuda;
const liger_kernel_table liger_table_cuda = {
    .backend = "cuda",
#define LIGER_OP(op, room) .op##_forward = op##_forward_cuda, .op##_backward = op##_backward_cuda,
#define LIGER_KERNEL(kernel, room) .kernel = kernel##_cuda,
#include "liger/ops/ops.def"
};
