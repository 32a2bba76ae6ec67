/* linear_logprob.h - log-probabilities of tokens under a linear head, without the [rows, vocab] logits. What its results are,
 * and how they behave at the edges, says logprob.h, whose functions take logits that are there.
 *
 * What policy gradients, preference losses and distillation ask of a model is a few numbers for each token: the
 * log-probability of the token that was chosen, the entropy, perhaps the log-probabilities of a list of ids. Forward makes
 * them from logits that exist a chunk of rows at a time; backward, which knows its upstream gradients only later, makes the
 * logits again, a slice of the vocabulary at a time, so that beside the gradients there is one slice and, for a 16-bit dx,
 * its sum in f32. Where forward's logits were kept, backward consumes them instead. */
#ifndef LIGER_OPS_LINEAR_LOGPROB_H
#define LIGER_OPS_LINEAR_LOGPROB_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_linear_logprob_forward     the results of liger_logprob_forward, of logits = x·weightᵀ + bias
 *
 *   x                   in    [rows, hidden]   T    last dimension contiguous, any row stride
 *   weight              in    [vocab, hidden]  T    contiguous
 *   bias                in    [vocab]          T    may be absent
 *   target              in    [rows]     i32 or i64 in [0, vocab), or ignore_index
 *   selected_ids        in    [ids]      i32 or i64 in [0, vocab), in any order, also twice; may be absent
 *   logits              work  [chunk, vocab]   T    any row stride >= vocab; its rows are the size of a chunk:
 *                                                   liger_linear_logprob_forward_chunk_rows advises. If there are enough
 *                                                   for all rows that are multiplied, backward may be given what is left
 *   log_prob ... normalizer   out                   as there. Each may be absent, as every output
 *   selected_log_probs  out   [rows, ids]     f32   log p of selected_ids, over the whole vocabulary; only with them
 *
 *   Ignored rows give 0 and are left out of the products: on the CPU always. On a GPU, where the size of a product must be
 *   known on the host, they are multiplied too, unless valid_rows >= 0 says how many rows are not ignored at most; surplus
 *   rows cost what others do. If there are more, the CPU refuses the call, and a GPU, which counts without anybody waiting,
 *   makes NaN of every result.
 *   T is f32, f16 or bf16. Products accumulate in f32; logits are rounded to T, as an unfused head's; the rest is f32.
 *   Edges as there; ids out of range: TARGET on the CPU, NaN on a GPU. hidden or vocab == 0: SHAPE.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, TARGET, WORKSPACE, UNSUPPORTED (no cuBLASLt).  Workspace: see the query.
 *   Same inputs and chunk size, same bits.  Graph-capturable after one warm-up call per shape.  Since 0.9. */
typedef struct liger_linear_logprob_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor bias;
    liger_tensor target;
    liger_tensor selected_ids;
    liger_tensor logits;
    liger_tensor log_prob;
    liger_tensor entropy;
    liger_tensor lse;
    liger_tensor log_sum_sq_probs;
    liger_tensor mean_logits;
    liger_tensor is_top1;
    liger_tensor selected_log_probs;
    liger_tensor normalizer;
    int64_t ignore_index;
    int64_t valid_rows; /* -1, or an upper bound of the rows that are not ignored */
    float scale;        /* finite */
    float softcap;      /* 0 = none, else > 0 */
    float temperature;  /* finite, > 0 */
    int32_t keep;       /* 0 or 1: read by liger_linear_logprob_forward_chunk_rows alone */
    void *workspace;    /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_linear_logprob_forward_args;

#define LIGER_LINEAR_LOGPROB_FORWARD_ARGS_INIT                                                                         \
    {                                                                                                                  \
        .size = sizeof(liger_linear_logprob_forward_args), .ignore_index = -100, .valid_rows = -1, .scale = 1.0f,      \
        .temperature = 1.0f                                                                                            \
    }

LIGER_API liger_status liger_linear_logprob_forward(liger_context *context,
                                                    const liger_linear_logprob_forward_args *args, liger_stream stream);
LIGER_API liger_status liger_linear_logprob_forward_workspace(liger_context *context,
                                                              const liger_linear_logprob_forward_args *args,
                                                              size_t *bytes);
/* The rows of `logits` to provide, from x, weight, valid_rows and the budget LIGER_LOSS_WORKSPACE_MB (by itself 1024 on
 * CUDA; by the shape on the CPU). With keep, for a caller who holds what is left for backward: all that are multiplied,
 * where a budget that is set holds them; if none is set, where they are at most `hidden` more than without. */
LIGER_API liger_status liger_linear_logprob_forward_chunk_rows(liger_context *context,
                                                               const liger_linear_logprob_forward_args *args,
                                                               size_t *rows);

/* liger_linear_logprob_backward     dx = Σ_j dlogits_j·weight_j,  dweight = dlogitsᵀ·x,  dbias = Σ_rows dlogits
 *
 *   dlogits is that of liger_logprob_backward, to whose dz_j the upstream gradients w_k of selected_log_probs add
 *   Σ_k w_k·(1[j = id_k] - p_j).
 *
 *   x, weight, bias, target, selected_ids   in   as forward's
 *   logits              work  [chunk, slice]   T    rows: as many as are multiplied, all or valid_rows; its columns are the
 *                                                   size of a slice: liger_linear_logprob_backward_slice_cols advises.
 *                                                   logits_kept 1: in, [.., vocab], as forward left it, and lost. 2: absent;
 *                                                   they are where dweight begins, rows after each other without gaps,
 *                                                   if slice_cols answers 0
 *   log_prob ... d_mean_logits   in                 as there
 *   d_selected_log_probs   in   as the output  f32  contiguous; only with selected_ids
 *   dx                  out   [rows, hidden]   T or f32   must not overlap x. May be absent, as every output
 *   dweight             out   [vocab, hidden]  T or f32   contiguous; rounded once
 *   dbias               out   [vocab]         f32
 *
 *   The gradient of the logits is rounded to T, as an unfused head's; dx is summed in f32 and rounded once, or,
 *   for a vocabulary that is split over processes, handed out as that sum.
 *   Edges, errors and promises as forward; rows == 0: dweight and dbias 0. An id out of range hits no column on a GPU: forward's
 *   NaN says that it is there. The options must be those of the forward call. */
typedef struct liger_linear_logprob_backward_args {
    size_t size;
    liger_tensor x;
    liger_tensor weight;
    liger_tensor bias;
    liger_tensor target;
    liger_tensor selected_ids;
    liger_tensor logits;
    liger_tensor log_prob;
    liger_tensor normalizer;
    liger_tensor entropy;
    liger_tensor log_sum_sq_probs;
    liger_tensor d_log_prob;
    liger_tensor d_entropy;
    liger_tensor d_lse;
    liger_tensor d_log_sum_sq_probs;
    liger_tensor d_mean_logits;
    liger_tensor d_selected_log_probs;
    liger_tensor dx;
    liger_tensor dweight;
    liger_tensor dbias;
    int64_t ignore_index;
    int64_t valid_rows;
    float scale;
    float softcap;
    float temperature;
    int32_t logits_kept; /* 0, 1 or 2 */
    void *workspace;
    size_t workspace_bytes;
} liger_linear_logprob_backward_args;

#define LIGER_LINEAR_LOGPROB_BACKWARD_ARGS_INIT                                                                        \
    {                                                                                                                  \
        .size = sizeof(liger_linear_logprob_backward_args), .ignore_index = -100, .valid_rows = -1, .scale = 1.0f,     \
        .temperature = 1.0f                                                                                            \
    }

LIGER_API liger_status liger_linear_logprob_backward(liger_context *context,
                                                     const liger_linear_logprob_backward_args *args,
                                                     liger_stream stream);
LIGER_API liger_status liger_linear_logprob_backward_workspace(liger_context *context,
                                                               const liger_linear_logprob_backward_args *args,
                                                               size_t *bytes);
/* The columns of `logits` to provide, from x, weight, whether there is a dx, valid_rows and the budget. 0, with logits_kept 2,
 * a dweight and no logits: forward may have left them in dweight, on a CPU with no more rows than hidden, if some divisor cuts
 * vocab into slices of 256 columns or more and 16 MB at most. */
LIGER_API liger_status liger_linear_logprob_backward_slice_cols(liger_context *context,
                                                                const liger_linear_logprob_backward_args *args,
                                                                size_t *cols);

#ifdef __cplusplus
}
#endif
#endif
