/* int2_matmul_problem.h - what a backend sees: flat, checked, no views. */
#ifndef LIGER_OPS_INT2_MATMUL_PROBLEM_H
#define LIGER_OPS_INT2_MATMUL_PROBLEM_H

#include <stddef.h>
#include <stdint.h>

#include "liger/core/tensor.h"

/* Byte (r, n) holds the weights of rows r, r + packed, r + 2·packed and r + 3·packed of column n, each plus 1, the first in
 * the lowest two bits. */
struct int2_weights {
    const uint8_t *data;
    int64_t row_stride, col_stride; /* any */
};

struct int2_matmul_problem {
    int64_t m, n, packed; /* k is 4·packed; m and n are 1 or more */
    int64_t lda, ldc;
    const int8_t *a;
    struct int2_weights b;
    int32_t *c;
    void *workspace; /* CUDA: int2_unpacked_bytes */
};

/* The weights as bytes on CUDA: [n][int2_pitch], where a row begins at 16 bytes. Products of few rows take them as they are. */
enum { INT2_FEW_ROWS = 8, INT2_ALIGNMENT = 16 };
static inline int64_t int2_pitch(int64_t packed) {
    return (4 * packed + INT2_ALIGNMENT - 1) / INT2_ALIGNMENT * INT2_ALIGNMENT;
}
static inline size_t int2_unpacked_bytes(int64_t m, int64_t n, int64_t packed) {
    return m <= INT2_FEW_ROWS ? 0 : (size_t)n * (size_t)int2_pitch(packed);
}

#endif
