/* tvd.h - the total variation distance of two matrices of distributions, with the gradient formed on the way.
 *
 * D. A. Levin, Y. Peres, E. L. Wilmer: Markov Chains and Mixing Times (2009), chapter 4. */
#ifndef LIGER_OPS_TVD_H
#define LIGER_OPS_TVD_H

#include "liger/core/context.h"
#include "liger/core/reduction.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_tvd     value = |x - y| / 2     slope = sign(x - y) / 2
 *
 *   x          in    [rows, cols]   T            the student's probabilities; last dimension contiguous, any row stride
 *   y          in    [rows, cols]   T or f32     the teacher's; has no gradient
 *   labels, upstream, loss, dx, ignore_index and reduction as in liger_kl_div
 *
 *   T is f32, f16 or bf16. Arithmetic and sums are f32, each result is rounded once.
 *   Edges: the slope of x = y is 0. NaN stays. No row counts, or there is none: the scalar is 0. No elements: 0, and nothing
 *   else is written.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.  Workspace: as liger_kl_div.  Same inputs, same bits, any thread count.
 *   Graph-capturable.  Since 0.9. */
typedef struct liger_tvd_args {
    size_t size;
    liger_tensor x;
    liger_tensor y;
    liger_tensor labels;
    liger_tensor upstream;
    liger_tensor loss;
    liger_tensor dx;
    int64_t ignore_index;
    int32_t reduction; /* liger_reduction */
    uint32_t reserved; /* 0 */
    void *workspace;   /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_tvd_args;

#define LIGER_TVD_ARGS_INIT                                                                                            \
    { .size = sizeof(liger_tvd_args), .ignore_index = -100, .reduction = LIGER_REDUCTION_BATCHMEAN }

LIGER_API liger_status liger_tvd(liger_context *context, const liger_tvd_args *args, liger_stream stream);
LIGER_API liger_status liger_tvd_workspace(liger_context *context, const liger_tvd_args *args, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
