/* blas.h - the f32 matrix product of a library that is already on the machine. Internal.
 *
 * Nothing is linked: a BLAS is looked up once per process. Under PyTorch it is the sgemm_ that PyTorch's own CPU library
 * exports, so that matrix products have its speed and run on its thread team; else an OpenBLAS, if one is installed.
 * The interface has 32-bit integers: a product with a size or a stride beyond 2^31 - 1 cannot go through it. */
#ifndef LIGER_CPU_BLAS_H
#define LIGER_CPU_BLAS_H

#include <stdbool.h>

/* Fortran's sgemm: column-major, every argument by address. */
typedef void liger_sgemm_fn(const char *transpose_a, const char *transpose_b, const int *m, const int *n, const int *k,
                            const float *alpha, const float *a, const int *lda, const float *b, const int *ldb,
                            const float *beta, float *c, const int *ldc);

struct blas {
    liger_sgemm_fn *sgemm; /* NULL: there is none */
    const char *provider;  /* what was found and where, or why there is none; never NULL */
};

/* The same answer for the life of the process. `own_avx512`: the caller has a kernel of its own for AVX-512. Intel's MKL,
 * which PyTorch brings, keeps its best kernels for Intel's processors: on an AMD EPYC that kernel is faster (a linear cross
 * entropy took 1161 ms, not 1328; on a Xeon 856, not 769), and then the answer is that there is none. LIGER_BLAS=none in
 * the environment turns the look-up off, LIGER_BLAS=always this preference. */
const struct blas *blas_find(bool own_avx512);

#endif
