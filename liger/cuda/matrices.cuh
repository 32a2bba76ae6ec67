/* matrices.cuh - what tensor cores multiply, from shared memory: matrices of 8 rows of 16 bytes. */
#ifndef LIGER_CUDA_MATRICES_CUH
#define LIGER_CUDA_MATRICES_CUH

#include <stdint.h>

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

#endif
