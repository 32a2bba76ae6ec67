/* linear_cross_entropy.h - a linear head and its cross entropy in one call, without the [rows, vocab] logits.
 *
 * The logits of a model with a large vocabulary are its largest tensor. Here they are made chunk by chunk in a buffer
 * that the caller sizes, turned into their gradient in place and consumed at once: loss and gradients come out of one
 * call, and the memory needed is that of the gradients and of one chunk, and where weight's gradient is in 16 bits of its sum
 * in f32. Where that is too much the logits are made twice, in two passes, and the sum is one of x's gradient. */
#ifndef LIGER_OPS_LINEAR_CROSS_ENTROPY_H
#define LIGER_OPS_LINEAR_CROSS_ENTROPY_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"
#include "liger/ops/cross_entropy/cross_entropy.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_linear_cross_entropy_forward     loss = cross_entropy(x·weightᵀ + bias, target), and its gradients
 *
 *   x             in    [rows, hidden]   T    last dimension contiguous, any row stride
 *   weight        in    [vocab, hidden]  T    contiguous
 *   bias          in    [vocab]          T    may be absent
 *   target        in    [rows]     i32 or i64 in [0, vocab), or ignore_index
 *   class_weight  in    [vocab]         f32   may be absent
 *   upstream      in    scalar or [rows] f32  multiplies the gradient of the logits; absent: 1
 *   logits        work  [chunk, vocab]   T    any row stride >= vocab; its rows are the size of a chunk:
 *                                             liger_linear_cross_entropy_forward_chunk_rows advises. Contents are lost
 *                                             Absent, or of 0 rows: on a CPU with a dweight and rows <= hidden they are
 *                                             made where dweight will be, if some divisor cuts vocab into slices of 256
 *                                             columns or more and 16 MB at most
 *                       or [rows, slice]      two passes: contiguous, slice < vocab, one row of the vocabulary at least:
 *                                             liger_linear_cross_entropy_forward_slice_cols advises
 *   loss          out   scalar, or [rows] with NONE   T or f32   may be absent, as every output
 *   z_loss        out   as loss                       T or f32
 *   accuracy      out   as loss                       f32
 *   predicted     out   [rows]                        i64
 *   dx            out   [rows, hidden]   T    must not overlap x
 *   dweight       out   [vocab, hidden]  T or f32     contiguous. With more than one chunk a T result is rounded after
 *                                             each: pass f32 and round once with liger_scale, or take two passes,
 *                                             which round once
 *   dbias         out   [vocab]         f32
 *   counts        out   [4]             f32   rows that are not ignored, the sum of their class weights (without: the
 *                                             rows again), the sum of all class weights (without: 0), 0
 *
 *   The loss and its options are those of liger_cross_entropy_forward. token_scaling != 0 multiplies loss, z-loss and
 *   gradient of a row by softmax(logits)[target], which takes part in no gradient. raw_gradient != 0 leaves the division
 *   by the counts out of dx, dweight and dbias (f16: a mean over many rows would underflow in the logits' gradient); the
 *   caller divides the result by counts[1] with class weights, by counts[0] without.
 *   T is f32, f16 or bf16. Products accumulate in f32; logits and their gradient are rounded to T, as an unfused head's.
 *   Ignored rows take part in the products with a gradient of 0: a NaN or Inf in such a row of x is no part of the loss,
 *   but makes NaN of its column of dweight (0 · NaN), as in an unfused head.
 *   Edges, targets out of range: as cross entropy. rows == 0: loss 0, dweight and dbias 0. hidden or vocab == 0: SHAPE.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, TARGET, WORKSPACE, UNSUPPORTED (no cuBLASLt).  Workspace: see the query.
 *   Two passes take every option, and give what one pass gives but for roundings: a row's probabilities are made from the
 *   logarithm of their sum, and dx is summed up slice by slice. They take 8 operations for each row and element of the
 *   weight, where one pass takes 6.
 *   Same inputs and size of logits, same bits.  Graph-capturable after one warm-up call per shape.  Since 0.9. */
typedef struct liger_linear_cross_entropy_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor bias;
    liger_tensor target;
    liger_tensor class_weight;
    liger_tensor upstream;
    liger_tensor logits;
    liger_tensor loss;
    liger_tensor z_loss;
    liger_tensor accuracy;
    liger_tensor predicted;
    liger_tensor dx;
    liger_tensor dweight;
    liger_tensor dbias;
    liger_tensor counts;
    int64_t ignore_index;
    float label_smoothing;  /* in [0, 1] */
    float lse_square_scale; /* finite */
    float softcap;          /* 0 = none, else > 0 */
    int32_t reduction;      /* liger_reduction */
    int32_t token_scaling;  /* 0 or 1 */
    int32_t raw_gradient;   /* 0 or 1 */
    void *workspace;        /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_linear_cross_entropy_forward_args;

#define LIGER_LINEAR_CROSS_ENTROPY_FORWARD_ARGS_INIT                                                                   \
    { .size = sizeof(liger_linear_cross_entropy_forward_args), .ignore_index = -100, .reduction = LIGER_REDUCTION_MEAN }

LIGER_API liger_status liger_linear_cross_entropy_forward(liger_context *context,
                                                          const liger_linear_cross_entropy_forward_args *args,
                                                          liger_stream stream);
LIGER_API liger_status liger_linear_cross_entropy_forward_workspace(liger_context *context,
                                                                    const liger_linear_cross_entropy_forward_args *args,
                                                                    size_t *bytes);
/* The rows of `logits` to provide, from x, weight and the budget LIGER_LOSS_WORKSPACE_MB (by itself 1024 on CUDA; by
 * the shape on the CPU). With a dweight of 16 bits, all rows where their logits take no more than an f32 sum of it would.
 * 0: none, on a CPU without a named budget, for logits of more than 28 MB that can be made in dweight. */
LIGER_API liger_status liger_linear_cross_entropy_forward_chunk_rows(
    liger_context *context, const liger_linear_cross_entropy_forward_args *args, size_t *rows);
/* To be asked first where dweight is wanted in 16 bits and rounded once: vocab, for one pass, or the columns of all rows of
 * `logits` for two. Two, if T has 16 bits and LIGER_LOSS_WORKSPACE_MB is set to less than an f32 sum of dweight, to less than
 * all logits, and rows < vocab. What is advised then is what an f32 sum of dx, if there is a dx, leaves of the budget. */
LIGER_API liger_status liger_linear_cross_entropy_forward_slice_cols(
    liger_context *context, const liger_linear_cross_entropy_forward_args *args, size_t *cols);

/* liger_linear_cross_entropy_backward     the gradients for an upstream that is known only now
 *
 *   For reduction NONE, whose upstream is one value per row: the logits are made again and each row of their gradient is
 *   multiplied by its upstream before the products. Arguments, edges, errors and promises as forward. */
typedef struct liger_linear_cross_entropy_backward_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor bias;
    liger_tensor target;
    liger_tensor class_weight;
    liger_tensor upstream;
    liger_tensor logits;
    liger_tensor dx;
    liger_tensor dweight;
    liger_tensor dbias;
    int64_t ignore_index;
    float label_smoothing;
    float lse_square_scale;
    float softcap;
    int32_t reduction;
    int32_t token_scaling;
    int32_t reserved; /* 0 */
    void *workspace;
    size_t workspace_bytes;
} liger_linear_cross_entropy_backward_args;

#define LIGER_LINEAR_CROSS_ENTROPY_BACKWARD_ARGS_INIT                                                                  \
    {                                                                                                                  \
        .size = sizeof(liger_linear_cross_entropy_backward_args), .ignore_index = -100,                                \
        .reduction = LIGER_REDUCTION_MEAN                                                                              \
    }

LIGER_API liger_status liger_linear_cross_entropy_backward(liger_context *context,
                                                           const liger_linear_cross_entropy_backward_args *args,
                                                           liger_stream stream);
LIGER_API liger_status liger_linear_cross_entropy_backward_workspace(
    liger_context *context, const liger_linear_cross_entropy_backward_args *args, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
