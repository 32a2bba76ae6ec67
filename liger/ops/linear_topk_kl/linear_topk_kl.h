/* linear_topk_kl.h - a linear head and its Kullback-Leibler divergence from a teacher of whom a few probabilities of each row are
 * known, without the [rows, vocab] logits.
 *
 * Distillation (Hinton, Vinyals, Dean, arXiv 1503.02531) from lists of a teacher's most probable ids. What the list leaves of the
 * teacher's probability is one more class, the rest: it stands against the student's probability of all ids that are not listed. So
 * the loss is a divergence of two distributions, 0 where they agree, and below that of the whole ones (data processing). */
#ifndef LIGER_OPS_LINEAR_TOPK_KL_H
#define LIGER_OPS_LINEAR_TOPK_KL_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"
#include "liger/ops/linear_kl_div/linear_kl_div.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_linear_topk_kl     the loss and its gradients in one call
 *
 *   With p = softmax((x·weightᵀ + bias)/temperature), q = exp(logprobs) at the ids S of a row, r = 1 - Σ_S q and s = Σ p_j over j
 *   outside S, which is summed as it stands and not as 1 - Σ_S p:
 *
 *     row = Σ_S q·(log q - log p) + r·(log r - log s)                        a term whose factor q or r is 0 is 0
 *     d row / d(x·weightᵀ + bias)_j = (p_j - q_j)/temperature in S,  p_j·(1 - r/s)/temperature outside
 *
 *   x          in    [rows, hidden]   T    last dimension contiguous, any row stride
 *   weight     in    [vocab, hidden]  T    contiguous
 *   bias       in    [vocab]          T    may be absent
 *   ids        in    [rows, k]  i32 or i64   any row stride. In [0, vocab), in any order, or -1: such a place of the list is empty,
 *                                          and what its logprob is does not matter. k is 1 or more
 *   logprobs   in    [rows, k]  f32, f16 or bf16   of the teacher at temperature, any row stride. -inf is a q of 0, as is what
 *                                                  exp makes less than 2^-126 of: the id is one of S
 *   labels     in    [rows]     i32 or i64 a row whose label is ignore_index does not count, and its lists are not looked at;
 *                                          other labels are not looked at. Absent: every row counts
 *   logits     work  [chunk, vocab]   T    any row stride >= vocab; its rows are the size of a chunk:
 *                                          liger_linear_topk_kl_chunk_rows advises. Contents are lost
 *                                          Absent, or of 0 rows: on a CPU with a dweight and rows <= hidden they are
 *                                          made where dweight will be, if some divisor cuts vocab into slices of 256
 *                                          columns or more and 16 MB at most
 *   loss       out   scalar          f32   may be absent, as every output
 *   dx         out   [rows, hidden]   T    must not overlap x
 *   dweight    out   [vocab, hidden]  T or f32     contiguous. With more than one chunk a T result is rounded after each: pass
 *                                          f32 and round once with liger_scale
 *   dbias      out   [vocab]         f32
 *
 *   T is f32, f16 or bf16. Logits are rounded to T, as an unfused head's, divided by the temperature in f32; so is their gradient
 *   rounded. Products, sums and the loss are f32. Rows that do not count: gradient 0, though a NaN or Inf in such a row of x makes
 *   NaN of its column of dweight (0·NaN), as in an unfused head.
 *   raw_gradient != 0 leaves the division by n and vocab out of dx, dweight and dbias (f16: a mean over many would underflow in the
 *   gradient of the logits); the caller divides.
 *   Σ q above 1 is rounding, and r is 0, as far as 2^-10 (a teacher's own sums, a few printed digits) and -Σ q·log q roundings of
 *   logprobs to their dtype explain it; with an r of 0 the derivative in S is (p_j·Σ_S q - q_j)/temperature. Where they do not (logits or probabilities instead of logprobs), and where an id stands
 *   twice in a row, the row's loss and gradient are NaN.
 *   Where nothing is outside of S (all ids are listed, or the others have logits of -inf) so small an r is rounding too, and 0; a
 *   larger one makes the loss +inf.
 *   Edges: rows == 0, or none that counts: loss 0, gradients 0. NaN and Inf propagate within their row, the loss and the parameters'
 *   gradients; a logit of -inf where q is not 0 makes the loss +inf. hidden, vocab or k == 0: SHAPE. Ids out of range: TARGET on the
 *   CPU, on a GPU the row is NaN.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, TARGET, WORKSPACE, UNSUPPORTED (no cuBLASLt).  Workspace: see the query; of each row of a
 *   chunk it holds k elements of T.
 *   Same inputs and size of logits, same bits.  Graph-capturable after one warm-up call per shape.  Since 0.9. */
typedef struct liger_linear_topk_kl_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor bias;
    liger_tensor ids;
    liger_tensor logprobs;
    liger_tensor labels;
    liger_tensor logits;
    liger_tensor loss;
    liger_tensor dx;
    liger_tensor dweight;
    liger_tensor dbias;
    int64_t ignore_index;
    float temperature;    /* finite, above 0, and so its inverse */
    int32_t reduction;    /* liger_linear_kl_reduction */
    int32_t raw_gradient; /* 0 or 1 */
    int32_t reserved;     /* 0 */
    void *workspace;      /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_linear_topk_kl_args;

#define LIGER_LINEAR_TOPK_KL_ARGS_INIT                                                                                 \
    { .size = sizeof(liger_linear_topk_kl_args), .ignore_index = -100, .temperature = 1.0f }

LIGER_API liger_status liger_linear_topk_kl(liger_context *context, const liger_linear_topk_kl_args *args,
                                            liger_stream stream);
LIGER_API liger_status liger_linear_topk_kl_workspace(liger_context *context, const liger_linear_topk_kl_args *args,
                                                      size_t *bytes);
/* The rows of `logits` to provide, from x, weight and the budget LIGER_LOSS_WORKSPACE_MB (by itself 1024 on CUDA; by the
 * shape on the CPU). With a dweight of 16 bits, all rows where their logits take no more than an f32 sum of it would.
 * 0: none, on a CPU without a named budget, for logits of more than 28 MB that can be made in dweight. */
LIGER_API liger_status liger_linear_topk_kl_chunk_rows(liger_context *context, const liger_linear_topk_kl_args *args,
                                                       size_t *rows);

#ifdef __cplusplus
}
#endif
#endif
