/* cpu_table.c - the kernel table of one instruction set; compiled once per set.
 *
 * AVX512-BF16 and AMX differ from AVX-512 in matrix products only: they take its kernels and bring their own products. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/isa.h"

#define LIGER_STRING2(text) #text
#define LIGER_STRING(text) LIGER_STRING2(text)

#if LIGER_CPU_CODE == LIGER_CPU_CODE_avx512bf16 || LIGER_CPU_CODE == LIGER_CPU_CODE_amx
#define LIGER_CPU_INHERITED(slot) slot##_cpu_avx512
#else
#define LIGER_CPU_INHERITED(slot) LIGER_CPU(slot)
#endif

#define LIGER_OP(op, room)                                                                                             \
    op##_forward_kernel LIGER_CPU_INHERITED(op##_forward);                                                             \
    op##_backward_kernel LIGER_CPU_INHERITED(op##_backward);
#define LIGER_KERNEL(kernel, room) kernel##_kernel LIGER_CPU_INHERITED(kernel);
#define LIGER_COMPOSITE(op, room)
#include "liger/ops/ops.def"
#undef LIGER_OP
#undef LIGER_KERNEL

gemm_kernel LIGER_CPU(gemm);
int2_matmul_kernel LIGER_CPU(int2_matmul);

extern const liger_kernel_table LIGER_CPU(liger_table);

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init" /* the products, which the last lines may replace */
const liger_kernel_table LIGER_CPU(liger_table) = {
    .backend = "cpu-" LIGER_STRING(LIGER_CPU_ISA),
#define LIGER_OP(op, room)                                                                                             \
    .op##_forward = LIGER_CPU_INHERITED(op##_forward), .op##_backward = LIGER_CPU_INHERITED(op##_backward),
#define LIGER_KERNEL(kernel, room) .kernel = LIGER_CPU_INHERITED(kernel),
#include "liger/ops/ops.def"
    .gemm = LIGER_CPU(gemm),
    .int2_matmul = LIGER_CPU(int2_matmul),
};
#pragma GCC diagnostic pop
