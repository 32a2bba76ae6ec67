/* matrices.cuh - what tensor cores multiply, from shared memory: matrices of 8 rows of 16 bytes. */
#ifndef LIGER_CUDA_MATRICES_CUH
#define LIGER_CUDA_MATRICES_CUH

#include <type_traits>

#include "liger/cuda/dtype.cuh"

/* Four of them; a lane names the row lane % 8 of matrix lane / 8, and gets bytes 4 · (lane % 4) and the next three of row
 * lane / 4 of each. TRANSPOSED, of elements of 2 bytes: rows 2 · (lane % 4) and the next of column lane / 4. */
template <bool TRANSPOSED = false>
__device__ __forceinline__ void load_matrices(const void *row, uint32_t (&x)[4]) {
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(at)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(at)
                     : "memory");
    }
}
/* Two of them: of lanes 0 to 15 alone the address matters. */
__device__ __forceinline__ void load_two_matrices(const void *row, uint32_t (&x)[2]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(x[0]), "=r"(x[1])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* 16 x 16 of a times 16 x 8 of b, of 16-bit elements; nothing before capability 8. */
template <typename T>
__device__ __forceinline__ void add_product(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                            uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    if constexpr (sizeof(T) == 2 && !std::is_same_v<T, f16>) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
#endif
}

#endif
