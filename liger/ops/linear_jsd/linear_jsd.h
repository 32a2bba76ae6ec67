/* linear_jsd.h - a student's and a teacher's linear head and their generalised Jensen-Shannon divergence, without [rows, vocab]
 * logits of either.
 *
 * Distillation from the hidden states of a teacher (GKD, Agarwal et al., arXiv 2306.13649; the divergence: Lin, 1991). Both
 * models' logits are made in f32, a few rows at a time in scratch, and become the gradient of the student's. */
#ifndef LIGER_OPS_LINEAR_JSD_H
#define LIGER_OPS_LINEAR_JSD_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_linear_jsd     the loss and its gradients in one call
 *
 *   With log Q = log softmax(x·weightᵀ/temperature) of the student, log P = log softmax(teacher_x·teacher_weightᵀ/temperature) and
 *   M = beta·P + (1 - beta)·Q a row of the loss is, of n rows that count,
 *     beta = 0       Σ P·(log P - log Q) / n        KL(P ‖ Q)
 *     beta = 1       Σ Q·(log Q - log P) / n        KL(Q ‖ P)
 *     between        Σ beta·P·(log P - log M) + (1 - beta)·Q·(log Q - log M) / n
 *
 *   x               in    [rows, hidden]          T    last dimension contiguous, any row stride
 *   weight          in    [vocab, hidden]         T    contiguous
 *   teacher_x       in    [rows, teacher_hidden]  f32, f16 or bf16   as x
 *   teacher_weight  in    [vocab, teacher_hidden] of teacher_x's dtype   contiguous
 *   labels          in    [rows]     i32 or i64   a row whose label is ignore_index does not count; other labels are not looked
 *                                                 at. Absent: every row counts
 *   dlogits         work  [chunk, vocab]          T    for the gradient of the logits: any row stride >= vocab; its rows are the
 *                                                 size of a chunk: liger_linear_jsd_chunk_rows advises. Needed with dx or dweight
 *   loss            out   scalar                  f32  may be absent, as every output
 *   dx              out   [rows, hidden]          T    must not overlap x
 *   dweight         out   [vocab, hidden]         T or f32   contiguous. With more than one chunk a T result is rounded after each:
 *                                                 pass f32 and round once with liger_scale
 *
 *   T is f32, f16 or bf16. Logits of both are f32 and never rounded to 16 bits; the gradient of the student's is rounded to T once.
 *   With a beta near 0 or 1 the errors of a loss and its gradient become as small as these do, as in liger_jsd.
 *   A factor P or Q that is 0 makes its term and its gradient 0, against an infinity too.
 *   Rows that do not count: gradient 0, though a NaN or Inf in such a row of x makes NaN of its column of dweight (0·NaN).
 *   raw_gradient != 0 leaves the division by n out of dx and dweight (f16: a mean over many would underflow in the gradient of the
 *   logits); the caller divides.
 *   Edges: rows == 0, or none that counts: loss 0, gradients 0. NaN propagates within its row, to the loss and dweight. A logit of
 *   -inf is a probability of 0: with beta 0 the loss is +inf where P is not 0, with beta 1 where Q is not. hidden, teacher_hidden
 *   or vocab == 0: SHAPE.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE, UNSUPPORTED (no cuBLASLt).  Workspace: see the query; the f32 logits of a
 *   few rows are the most of it.
 *   Same inputs and size of dlogits, same bits.  Graph-capturable after one warm-up call per shape.  Since 0.9. */
typedef struct liger_linear_jsd_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor teacher_x;
    liger_tensor teacher_weight;
    liger_tensor labels;
    liger_tensor dlogits;
    liger_tensor loss;
    liger_tensor dx;
    liger_tensor dweight;
    int64_t ignore_index;
    double beta;          /* in [0, 1] */
    float temperature;    /* finite, not 0, and so its inverse; may be negative */
    int32_t raw_gradient; /* 0 or 1 */
    void *workspace;      /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_linear_jsd_args;

#define LIGER_LINEAR_JSD_ARGS_INIT                                                                                     \
    { .size = sizeof(liger_linear_jsd_args), .ignore_index = -100, .beta = 0.5, .temperature = 1.0f }

LIGER_API liger_status liger_linear_jsd(liger_context *context, const liger_linear_jsd_args *args, liger_stream stream);
LIGER_API liger_status liger_linear_jsd_workspace(liger_context *context, const liger_linear_jsd_args *args,
                                                  size_t *bytes);
/* The rows of `dlogits` to provide, from x, weight and the budget LIGER_LOSS_WORKSPACE_MB (by itself 1024 on CUDA; by the
 * shape on the CPU). With a dweight of 16 bits, all rows where their logits take no more than an f32 sum of it would. */
LIGER_API liger_status liger_linear_jsd_chunk_rows(liger_context *context, const liger_linear_jsd_args *args,
                                                   size_t *rows);

#ifdef __cplusplus
}
#endif
#endif
