/* cross_entropy.h - softmax cross entropy over a vocabulary, with the gradient of the logits formed on the way.
 *
 * With dlogits in the forward call, logits are read once and their gradient is written once; there is nothing left to do
 * backward but to multiply by the upstream gradient (liger_scale). The backward call recomputes instead: for reduction
 * NONE, whose upstream is a vector, and for f16, where a mean's gradient is to meet its upstream before it is rounded. */
#ifndef LIGER_OPS_CROSS_ENTROPY_H
#define LIGER_OPS_CROSS_ENTROPY_H

#include "liger/core/context.h"
#include "liger/core/reduction.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_cross_entropy_forward     loss = reduction over rows of
 *                                 (1-α)·w[y]·(lse - x[y]) + α/vocab·Σ_j w[j]·(lse - x[j]) + z,     z = s·lse²
 *
 *   with x = logits, or softcap·tanh(logits/softcap); lse = log Σ_j exp x[j]; y = target; α = label_smoothing;
 *   s = lse_square_scale; w = weight, or all ones.
 *
 *   logits     in    [rows, vocab]  T           last dimension contiguous, any row stride
 *   target     in    [rows]         i32 or i64  in [0, vocab), or ignore_index: such a row contributes exactly 0, whatever
 *                                               its logits hold
 *   weight     in    [vocab]        f32         class weights; may be absent
 *   upstream   in    scalar or [rows]  f32      multiplies dlogits, in f32 before its rounding; absent: 1
 *   loss       out   scalar, or [rows] with NONE   T or f32   may be absent, as every output
 *   z_loss     out   as loss                    T or f32      the z part of the loss
 *   accuracy   out   as loss                    f32           1 where predicted == target; MEAN and SUM both give the mean
 *                                                             over rows that are not ignored
 *   predicted  out   [rows]         i64         smallest index of the largest x; -1 for ignored rows
 *   dlogits    out   [rows, vocab]  T           gradient of loss; may be logits itself; rows as logits
 *
 *   MEAN divides by the number of rows that are not ignored; with weights the loss without z by the sum of their w[y].
 *   T is f32, f16 or bf16. Rows, sums and statistics are f32, every result is rounded once.
 *   Edges: all rows ignored: loss 0, gradient 0, accuracy NaN (0/0). rows == 0: all scalars 0. vocab == 0 is
 *   LIGER_ERR_SHAPE. MEAN over weights that sum to 0 is NaN.
 *   A target outside [0, vocab) that is not ignore_index: CPU: LIGER_ERR_TARGET before anything is written. CUDA, where
 *   nobody waits for the device: that row's loss, z and gradient are NaN, its accuracy is 0, it counts as a row and adds 0
 *   to the sum of weights; no memory is read out of bounds.
 *   No output but dlogits may lie on another argument.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, TARGET, WORKSPACE.  Workspace: 12 bytes a row, see the query.
 *   Same inputs, same bits, any thread count.  Graph-capturable.  Since 0.9. */
typedef struct liger_cross_entropy_forward_args {
    size_t size;
    liger_tensor logits;
    liger_tensor target;
    liger_tensor weight;
    liger_tensor upstream;
    liger_tensor loss;
    liger_tensor z_loss;
    liger_tensor accuracy;
    liger_tensor predicted;
    liger_tensor dlogits;
    int64_t ignore_index;
    float label_smoothing;  /* in [0, 1] */
    float lse_square_scale; /* finite */
    float softcap;          /* 0 = none, else > 0 */
    int32_t reduction;      /* liger_reduction */
    void *workspace;        /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_cross_entropy_forward_args;

#define LIGER_CROSS_ENTROPY_FORWARD_ARGS_INIT                                                                          \
    { .size = sizeof(liger_cross_entropy_forward_args), .ignore_index = -100, .reduction = LIGER_REDUCTION_MEAN }

LIGER_API liger_status liger_cross_entropy_forward(liger_context *context, const liger_cross_entropy_forward_args *args,
                                                   liger_stream stream);
LIGER_API liger_status liger_cross_entropy_forward_workspace(liger_context *context,
                                                             const liger_cross_entropy_forward_args *args,
                                                             size_t *bytes);

/* liger_cross_entropy_backward     dlogits = upstream · ∂loss/∂logits, recomputed from the logits
 *
 *   logits, target, weight, upstream, dlogits and the options as in liger_cross_entropy_forward; dlogits is required.
 *   upstream is the gradient of the loss: a scalar for MEAN and SUM, [rows] for NONE.
 *
 *   Edges, errors and promises as forward.  Workspace: see the query. */
typedef struct liger_cross_entropy_backward_args {
    size_t size;
    liger_tensor logits;
    liger_tensor target;
    liger_tensor weight;
    liger_tensor upstream;
    liger_tensor dlogits;
    int64_t ignore_index;
    float label_smoothing;
    float lse_square_scale;
    float softcap;
    int32_t reduction; /* liger_reduction */
    void *workspace;
    size_t workspace_bytes;
} liger_cross_entropy_backward_args;

#define LIGER_CROSS_ENTROPY_BACKWARD_ARGS_INIT                                                                         \
    { .size = sizeof(liger_cross_entropy_backward_args), .ignore_index = -100, .reduction = LIGER_REDUCTION_MEAN }

LIGER_API liger_status liger_cross_entropy_backward(liger_context *context,
                                                    const liger_cross_entropy_backward_args *args, liger_stream stream);
LIGER_API liger_status liger_cross_entropy_backward_workspace(liger_context *context,
                                                              const liger_cross_entropy_backward_args *args,
                                                              size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
