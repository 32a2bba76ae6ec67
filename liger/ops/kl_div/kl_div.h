/* kl_div.h - the Kullback-Leibler divergence of two matrices of distributions, with the gradient formed on the way.
 *
 * S. Kullback, R. A. Leibler: On Information and Sufficiency (1951). */
#ifndef LIGER_OPS_KL_DIV_H
#define LIGER_OPS_KL_DIV_H

#include "liger/core/context.h"
#include "liger/core/reduction.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_kl_div     KL(y || x) of each row, from log-probabilities x:
 *
 *   log_target = 0   value = y · (log max(y, eps) - x)     slope = -y        y are probabilities
 *   log_target = 1   value = e^y · (y - x)                 slope = -e^y      y are log-probabilities
 *
 *   x          in    [rows, cols]   T            log-probabilities; last dimension contiguous, any row stride
 *   y          in    [rows, cols]   T or f32     has no gradient
 *   labels     in    [rows]         i32 or i64   rows whose label is ignore_index do not count and are not read; absent: all
 *                                                count. Nothing else is asked of a label
 *   upstream   in    scalar; with NONE also [rows] or [rows, cols]   f32   multiplies dx in f32, before its rounding;
 *                                                absent: 1
 *   loss       out   scalar   T or f32; with NONE [rows, cols] f32   may be absent
 *   dx         out   [rows, cols]   T            gradient of the loss, or of its sum with NONE; may be absent; may be x itself
 *
 *   NONE leaves the values as they are, SUM adds them up, BATCHMEAN divides that by the rows that count, and MEAN by cols
 *   besides. T is f32, f16 or bf16. Arithmetic and sums are f32, each result is rounded once.
 *   On CUDA with x of 16 bits the logarithm is the hardware's: it adds 2^-22 · max(1, |log y|) to the error of log y.
 *   Edges: a factor that is exactly 0 (y, or e^y) makes its value and its slope 0, whatever x is: of x = -Inf the value is 0
 *   there and +Inf elsewhere. Else NaN stays. eps is at least 2^-126. No row counts, or there is none: the
 *   scalar is 0. No elements: 0, and nothing else is written.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.  Workspace: 256 bytes and 4 for each 8192 elements or row, see the
 *   query.  Same inputs, same bits, any thread count.  Graph-capturable.  Since 0.9. */
typedef struct liger_kl_div_args {
    size_t size;
    liger_tensor x;
    liger_tensor y;
    liger_tensor labels;
    liger_tensor upstream;
    liger_tensor loss;
    liger_tensor dx;
    int64_t ignore_index;
    int32_t reduction;  /* liger_reduction */
    int32_t log_target; /* 0 or 1 */
    float eps;
    uint32_t reserved; /* 0 */
    void *workspace;   /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_kl_div_args;

#define LIGER_KL_DIV_ARGS_INIT                                                                                         \
    { .size = sizeof(liger_kl_div_args), .ignore_index = -100, .reduction = LIGER_REDUCTION_BATCHMEAN, .eps = 1e-10f }

LIGER_API liger_status liger_kl_div(liger_context *context, const liger_kl_div_args *args, liger_stream stream);
LIGER_API liger_status liger_kl_div_workspace(liger_context *context, const liger_kl_div_args *args, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
