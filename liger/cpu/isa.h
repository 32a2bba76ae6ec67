/* isa.h - one source, several instruction sets.
 *
 * CPU kernels and everything in this folder that they use are compiled once per instruction set, with the set's
 * compiler flags and -DLIGER_CPU_ISA=<name>. LIGER_CPU(rms_norm_forward) is then rms_norm_forward_cpu_avx2, say. Shared
 * headers hold `static` functions only: a plain `inline` would let the linker keep an AVX-512 copy for everybody. */
#ifndef LIGER_CPU_ISA_H
#define LIGER_CPU_ISA_H

#ifndef LIGER_CPU_ISA
#error "compile CPU kernels with -DLIGER_CPU_ISA=<base|avx2|avx512|avx512bf16|amx|neon>"
#endif

#define LIGER_CPU_JOIN2(name, isa) name##_cpu_##isa
#define LIGER_CPU_JOIN(name, isa) LIGER_CPU_JOIN2(name, isa)
#define LIGER_CPU(name) LIGER_CPU_JOIN(name, LIGER_CPU_ISA)

/* A number for the preprocessor: #if LIGER_CPU_CODE == LIGER_CPU_CODE_neon. The values are those of liger_isa. */
#define LIGER_CPU_CODE_base 1
#define LIGER_CPU_CODE_avx2 2
#define LIGER_CPU_CODE_avx512 3
#define LIGER_CPU_CODE_avx512bf16 4
#define LIGER_CPU_CODE_amx 5
#define LIGER_CPU_CODE_neon 6
#define LIGER_CPU_CODE_OF2(isa) LIGER_CPU_CODE_##isa
#define LIGER_CPU_CODE_OF(isa) LIGER_CPU_CODE_OF2(isa)
#define LIGER_CPU_CODE LIGER_CPU_CODE_OF(LIGER_CPU_ISA)

/* A C template in the sense of zstd: always inlined, called with a literal dtype, so that the dtype's switch folds. Under
 * AddressSanitizer it is a function like any other, checked once: a check at each place that it is inlined to takes five times
 * as long to compile and sees nothing more. */
#if defined(__SANITIZE_ADDRESS__)
#define LIGER_TEMPLATE static inline __attribute__((unused))
#else
#define LIGER_TEMPLATE static inline __attribute__((always_inline))
#endif

/* Calls `body` with LIGER_T bound to the literal of a runtime float dtype. */
#define LIGER_FOR_FLOAT(dtype, body)                                                                                   \
    switch (dtype) {                                                                                                   \
        case LIGER_F32: {                                                                                              \
            const liger_dtype LIGER_T = LIGER_F32;                                                                     \
            body;                                                                                                      \
        } break;                                                                                                       \
        case LIGER_F16: {                                                                                              \
            const liger_dtype LIGER_T = LIGER_F16;                                                                     \
            body;                                                                                                      \
        } break;                                                                                                       \
        case LIGER_BF16: {                                                                                             \
            const liger_dtype LIGER_T = LIGER_BF16;                                                                    \
            body;                                                                                                      \
        } break;                                                                                                       \
        default: break;                                                                                                \
    }

#endif
