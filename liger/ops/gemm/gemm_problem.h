/* gemm_problem.h - matrix product, the internal workhorse of the linear losses.
 *
 *   c[m, n] = op(a)[m, k] · op(b)[k, n]  (+ bias[n] | + c, if accumulate)      row-major, f32 accumulation
 *
 * a, b and bias share one float dtype; c has that dtype or f32. The bias is added in f32 before the one rounding to c's dtype. So
 * is c with accumulate, but to a 16-bit c on CUDA: cuBLASLt may round the product first. No size needs to be a multiple of
 * anything. Same inputs, same bits.
 *
 * CUDA besides: a and b i8 and c i32, exact as long as an i32 holds a sum, else modulo 2^32. Then b is stored [n, k], its
 * rows begin at 16 bytes and are as long as whole 16 bytes, and there is neither bias nor accumulate. */
#ifndef LIGER_OPS_GEMM_PROBLEM_H
#define LIGER_OPS_GEMM_PROBLEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "liger/core/tensor.h"

struct gemm_problem {
    liger_dtype dtype, c_dtype;
    bool transpose_a; /* a is stored [k, m] with row stride lda, else [m, k] */
    bool transpose_b; /* b is stored [n, k] with row stride ldb, else [k, n] */
    bool accumulate;
    int64_t m, n, k;
    int64_t lda, ldb, ldc; /* in elements */
    const void *a, *b;
    const void *bias; /* [n], or NULL; always NULL with accumulate */
    void *c;
    void *workspace; /* CUDA: scratch of cuBLASLt, and for products with a bias; the CPU needs none */
    size_t workspace_bytes;
};

/* Scratch that the CUDA backend likes to have; less is allowed and may be slower. Twice as much, which cuBLASLt's authors advise
 * on an H200, made no product of a head faster. */
enum { GEMM_WORKSPACE_BYTES = 16 << 20 };

#endif
