/* cublaslt_api.h - the part of cuBLASLt's interface that is used here, declared by ourselves.
 *
 * cuBLASLt is opened at run time and its header is not part of every CUDA toolkit. The numbers are its documented ABI;
 * where the real header exists, cublaslt_check.c compares them when the library is built. */
#ifndef LIGER_OPS_GEMM_CUBLASLT_API_H
#define LIGER_OPS_GEMM_CUBLASLT_API_H

#include <stddef.h>
#include <stdint.h>

enum {
    LT_OP_N = 0,
    LT_OP_T = 1,

    LT_R_32F = 0,
    LT_R_16F = 2,
    LT_R_8I = 3,
    LT_R_32I = 10,
    LT_R_16BF = 14,
    LT_COMPUTE_32F = 68,
    LT_COMPUTE_32I = 72,

    LT_DESC_TRANSA = 3,
    LT_DESC_TRANSB = 4,

    LT_PREF_MAX_WORKSPACE_BYTES = 1,
    LT_PREF_REDUCTION_SCHEME_MASK = 3,
    LT_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    LT_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    LT_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    LT_PREF_MIN_ALIGNMENT_D_BYTES = 8,
    LT_REDUCTION_COMPUTE_TYPE = 2,

    LT_INVALID_VALUE = 7, /* statuses */
    LT_ARCH_MISMATCH = 8,
    LT_NOT_SUPPORTED = 15,
};

typedef struct lt_algo {
    uint64_t data[8];
} lt_algo;

typedef struct lt_heuristic {
    lt_algo algo;
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
} lt_heuristic;

typedef void *lt_handle, *lt_desc, *lt_layout, *lt_preference, *lt_stream;

typedef struct lt_functions {
    int (*create)(lt_handle *);
    int (*destroy)(lt_handle);
    size_t (*version)(void);
    int (*desc_create)(lt_desc *, int compute_type, int scale_type);
    int (*desc_destroy)(lt_desc);
    int (*desc_set)(lt_desc, int attribute, const void *value, size_t bytes);
    int (*layout_create)(lt_layout *, int type, uint64_t rows, uint64_t cols, int64_t ld);
    int (*layout_destroy)(lt_layout);
    int (*preference_create)(lt_preference *);
    int (*preference_destroy)(lt_preference);
    int (*preference_set)(lt_preference, int attribute, const void *value, size_t bytes);
    int (*heuristic)(lt_handle, lt_desc, lt_layout a, lt_layout b, lt_layout c, lt_layout d, lt_preference, int wanted,
                     lt_heuristic *results, int *found);
    int (*matmul)(lt_handle, lt_desc, const void *alpha, const void *a, lt_layout, const void *b, lt_layout,
                  const void *beta, const void *c, lt_layout, void *d, lt_layout, const lt_algo *, void *workspace,
                  size_t workspace_bytes, lt_stream);
} lt_functions;

#endif
