/* jsd.h - the generalized Jensen-Shannon divergence of two matrices of distributions, with the gradient formed on the way.
 *
 * J. Lin: Divergence Measures Based on the Shannon Entropy (1991); with the weights of
 * R. Agarwal et al.: On-Policy Distillation of Language Models (2023), arXiv:2306.13649. */
#ifndef LIGER_OPS_JSD_H
#define LIGER_OPS_JSD_H

#include "liger/core/context.h"
#include "liger/core/reduction.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_jsd     With P = e^y, Q = e^x and M = beta·P + (1 - beta)·Q:
 *
 *   0 < beta < 1   value = beta·P·(y - log M) + (1 - beta)·Q·(x - log M)     slope = (1 - beta)·Q·(x - log M)
 *   beta = 0       value = P·(y - x), which is KL(P || Q)                    slope = -P
 *   beta = 1       value = Q·(x - y), which is KL(Q || P)                    slope = Q·(x - y) + Q
 *
 *   x          in    [rows, cols]   T            the student's log-probabilities; last dimension contiguous, any row stride
 *   y          in    [rows, cols]   T or f32     the teacher's; has no gradient
 *   labels, upstream, loss, dx, ignore_index and reduction as in liger_kl_div
 *
 *   log M is formed from the difference of x and y, so that it is finite where P and Q both vanish, and its error does not
 *   grow with theirs. T is f32, f16 or bf16. Arithmetic and sums are f32, each result is rounded once. On CUDA with x of 16
 *   bits exponentials and logarithms are the hardware's: of a value or slope, 2^-21 + |max(x, y)|·2^-23 parts of max(P, Q),
 *   where a result's own rounding is 2^-9 or 2^-12 of it. Where s, the smaller of beta and 1 - beta, is less than 2^-6, they are
 *   parts of s·max(P, Q)·(1 + |log s|), as values and slopes are: no digits are lost near the ends. An s below 2^-126 counts as that.
 *   Edges: a factor P or Q that is exactly 0 makes its value and slope 0, against an infinite logarithm too; with beta 0 or 1
 *   against NaN too, which stays else. No row
 *   counts, or there is none: the scalar is 0. No elements: 0, and nothing else is written.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.  Workspace: as liger_kl_div.  Same inputs, same bits, any thread count.
 *   Graph-capturable.  Since 0.9. */
typedef struct liger_jsd_args {
    size_t size;
    liger_tensor x;
    liger_tensor y;
    liger_tensor labels;
    liger_tensor upstream;
    liger_tensor loss;
    liger_tensor dx;
    int64_t ignore_index;
    double beta;       /* in [0, 1] */
    int32_t reduction; /* liger_reduction */
    int32_t reserved;  /* 0 */
    void *workspace;   /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_jsd_args;

#define LIGER_JSD_ARGS_INIT                                                                                            \
    { .size = sizeof(liger_jsd_args), .ignore_index = -100, .reduction = LIGER_REDUCTION_BATCHMEAN, .beta = 0.5 }

LIGER_API liger_status liger_jsd(liger_context *context, const liger_jsd_args *args, liger_stream stream);
LIGER_API liger_status liger_jsd_workspace(liger_context *context, const liger_jsd_args *args, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
