/* int2_matmul.h - int8 activations times weights of two bits each. */
#ifndef LIGER_OPS_INT2_MATMUL_H
#define LIGER_OPS_INT2_MATMUL_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_int2_matmul     c[m, n] = Σ_k a[m, k] · w[k, n],     w[i·R + r, n] = (b[r, n] >> 2i & 3) - 1,  i = 0 … 3
 *
 *   a          in    [m, 4·R]   i8     last dimension contiguous; rows do not overlap
 *   b          in    [R, n]     u8     any strides: four weights of -1, 0, 1 or 2 in a byte, R rows of w apart
 *   c          out   [m, n]     i32    last dimension contiguous; rows do not overlap
 *   workspace  CUDA: what liger_int2_matmul_workspace says, for the weights as bytes while the call runs. CPU: none.
 *
 *   Exact: a sum is at most 256 · 4R away from 0, which an i32 holds where 4R < 2^23. Beyond it sums wrap around, as
 *   additions of i32 modulo 2^32 do.
 *   Edges: m, R and n may be 0; without R c is zeros.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, OOM (CPU).  Same inputs, same bits.  Graph-capturable after the first call of a
 *   shape.  Since 0.9. */
typedef struct liger_int2_matmul_args {
    size_t size;
    liger_tensor a;
    liger_tensor b;
    liger_tensor c;
    void *workspace;
    size_t workspace_bytes;
} liger_int2_matmul_args;

#define LIGER_INT2_MATMUL_ARGS_INIT                                                                                    \
    { .size = sizeof(liger_int2_matmul_args) }

LIGER_API liger_status liger_int2_matmul(liger_context *context, const liger_int2_matmul_args *args,
                                         liger_stream stream);
/* Of a and b only the dtypes and shapes matter. */
LIGER_API liger_status liger_int2_matmul_workspace(liger_context *context, const liger_int2_matmul_args *args,
                                                   size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
