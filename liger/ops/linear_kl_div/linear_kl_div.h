/* linear_kl_div.h - a linear head and its Kullback-Leibler divergence from given probabilities, without the [rows, vocab] logits.
 *
 * Distillation from probabilities that a teacher has left (Hinton, Vinyals, Dean, arXiv 1503.02531). Logits are made chunk by
 * chunk in a buffer that the caller sizes, turned into their gradient in place and consumed at once; of the teacher's
 * probabilities each chunk is read where it lies. */
#ifndef LIGER_OPS_LINEAR_KL_DIV_H
#define LIGER_OPS_LINEAR_KL_DIV_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the loss is of n rows that count. */
typedef enum liger_linear_kl_reduction {
    LIGER_LINEAR_KL_BATCHMEAN = 0, /* Σ row / n */
    LIGER_LINEAR_KL_MEAN = 1,      /* Σ row / (n·vocab) */
    LIGER_LINEAR_KL_SUM = 2        /* Σ row */
} liger_linear_kl_reduction;

/* liger_linear_kl_div     the loss and its gradients in one call; with z = x·weightᵀ/temperature and q = target
 *
 *   row_i = Σ_j q_j·(log max(q_j, eps) - z_j) + log(Σ_j exp z_j)·Σ_j q_j
 *   d row_i / d(x·weightᵀ)_j = (softmax(z)_j·Σ_k q_k - q_j) / temperature
 *
 *   x             in    [rows, hidden]   T    last dimension contiguous, any row stride
 *   weight        in    [vocab, hidden]  T    contiguous
 *   target        in    [rows, vocab]  f32, f16 or bf16   probabilities, of any row stride. They need not add up to 1; a q_j of 0
 *                                             contributes 0, against a logit of -inf too
 *   labels        in    [rows]     i32 or i64 a row whose label is ignore_index does not count; other labels are not looked at.
 *                                             Absent: every row counts
 *   logits        work  [chunk, vocab]   T    any row stride >= vocab; its rows are the size of a chunk:
 *                                             liger_linear_kl_div_chunk_rows advises. Contents are lost
 *                                             Absent, or of 0 rows: on a CPU with a dweight and rows <= hidden they are
 *                                             made where dweight will be, if some divisor cuts vocab into slices of 256
 *                                             columns or more and 16 MB at most
 *   loss          out   scalar          f32   may be absent, as every output
 *   dx            out   [rows, hidden]   T    must not overlap x
 *   dweight       out   [vocab, hidden]  T or f32     contiguous. With more than one chunk a T result is rounded after each: pass
 *                                             f32 and round once with liger_scale
 *
 *   T is f32, f16 or bf16. Logits are rounded to T, as an unfused head's, divided by the temperature in f32; so is their gradient
 *   rounded. Products, sums and the loss are f32. Rows that do not count: gradient 0, though a NaN or Inf in such a row of x makes
 *   NaN of its column of dweight (0·NaN), as in an unfused head.
 *   raw_gradient != 0 leaves the division by n and vocab out of dx and dweight (f16: a mean over many would underflow in the
 *   gradient of the logits); the caller divides.
 *   Edges: rows == 0, or none that counts: loss 0, gradients 0. NaN and Inf propagate within their row, the loss and dweight; a
 *   logit of -inf where q is not 0 makes the loss +inf. hidden or vocab == 0: SHAPE.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE, UNSUPPORTED (no cuBLASLt).  Workspace: see the query.
 *   Same inputs and size of logits, same bits.  Graph-capturable after one warm-up call per shape.  Since 0.9. */
typedef struct liger_linear_kl_div_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor target;
    liger_tensor labels;
    liger_tensor logits;
    liger_tensor loss;
    liger_tensor dx;
    liger_tensor dweight;
    int64_t ignore_index;
    float temperature;    /* finite, not 0, and so its inverse; may be negative */
    float eps;            /* finite */
    int32_t reduction;    /* liger_linear_kl_reduction */
    int32_t raw_gradient; /* 0 or 1 */
    void *workspace;      /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_linear_kl_div_args;

#define LIGER_LINEAR_KL_DIV_ARGS_INIT                                                                                  \
    { .size = sizeof(liger_linear_kl_div_args), .ignore_index = -100, .temperature = 1.0f, .eps = 1e-10f }

LIGER_API liger_status liger_linear_kl_div(liger_context *context, const liger_linear_kl_div_args *args,
                                           liger_stream stream);
LIGER_API liger_status liger_linear_kl_div_workspace(liger_context *context, const liger_linear_kl_div_args *args,
                                                     size_t *bytes);
/* The rows of `logits` to provide, from x, weight and the budget LIGER_LOSS_WORKSPACE_MB (by itself 1024 on CUDA; by the
 * shape on the CPU). With a dweight of 16 bits, all rows where their logits take no more than an f32 sum of it would.
 * 0: none, on a CPU without a named budget, for logits of more than 28 MB that can be made in dweight. */
LIGER_API liger_status liger_linear_kl_div_chunk_rows(liger_context *context, const liger_linear_kl_div_args *args,
                                                      size_t *rows);

#ifdef __cplusplus
}
#endif
#endif
