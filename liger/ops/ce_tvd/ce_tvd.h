/* ce_tvd.h - cross entropy with labels and total variation distance to a teacher, both of each row of logits. */
#ifndef LIGER_OPS_CE_TVD_H
#define LIGER_OPS_CE_TVD_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_ce_tvd_forward     ce = log Σ_j exp(x_j) - x_target        tvd = Σ_j |p_j - q_j| / 2,  p = softmax(x), q = softmax(t)
 *
 *   student_logits  in    [rows, vocab]  T           x; last dimension contiguous
 *   teacher_logits  in    [rows, vocab]  T           t
 *   target          in    [rows]         i32 or i64  a row with ignore_index is ignored: its results are 0, its logits may be
 *                                                    anything
 *   ce              out   [rows]         f32
 *   tvd             out   [rows]         f32         total variation distance, in [0, 1] but for rounding
 *   student_max     out   [rows]         f32         the largest x; this, and those below, are for the backward call
 *   student_log_sum out   [rows]         f32         log Σ exp(x - student_max)
 *   teacher_max     out   [rows]         f32         likewise of t
 *   teacher_log_sum out   [rows]         f32
 *   sigma           out   [rows]         f32         Σ_j p_j · sign(p_j - q_j); 0 of two rows that are equal but for a constant
 *   dstudent        out   [rows, vocab]  T           absent, or the memory in which a backward call is to write the gradient:
 *                                                    forward may leave there, in a form of its own, what then need not be
 *                                                    found out again from the teacher
 *   has_signs       out   [rows]         i32         with dstudent: 1 where something is left in its row, 0 where not
 *
 *   T is f32, f16 or bf16. Arithmetic in f32.
 *   Edges: rows == 0 succeeds and does nothing; vocab == 0 is LIGER_ERR_SHAPE. A logit of -Inf has probability 0; a row with
 *   a NaN or +Inf in it, or of nothing but -Inf, has NaN results. A target that is neither ignore_index nor in [0, vocab): on
 *   the CPU LIGER_ERR_TARGET before anything is written; on CUDA, where nobody waits for the device, ce of its row is NaN
 *   and the rest of it as usual; no memory is read out of bounds.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, TARGET (CPU).  Workspace: none.  Same inputs, same bits.  Graph-capturable.
 *   Since 0.9.  Total variation as a loss of distillation: Wen et al. 2023, arXiv 2307.15190. */
typedef struct liger_ce_tvd_forward_args {
    size_t size;
    liger_tensor student_logits;
    liger_tensor teacher_logits;
    liger_tensor target;
    liger_tensor ce;
    liger_tensor tvd;
    liger_tensor student_max;
    liger_tensor student_log_sum;
    liger_tensor teacher_max;
    liger_tensor teacher_log_sum;
    liger_tensor sigma;
    liger_tensor dstudent;
    liger_tensor has_signs;
    int64_t ignore_index;
} liger_ce_tvd_forward_args;

#define LIGER_CE_TVD_FORWARD_ARGS_INIT                                                                                 \
    { .size = sizeof(liger_ce_tvd_forward_args), .ignore_index = -100 }

LIGER_API liger_status liger_ce_tvd_forward(liger_context *context, const liger_ce_tvd_forward_args *args,
                                            liger_stream stream);

/* liger_ce_tvd_backward     dstudent_j = dce · (p_j - [j = target]) + dtvd · p_j (s_j - sigma) / 2,    s = sign(p - q)
 *
 *   student_logits  in    [rows, vocab]  T
 *   teacher_logits  in    [rows, vocab]  T
 *   target          in    [rows]         i32 or i64
 *   student_max     in    [rows]         f32         what forward has found, and so on to sigma
 *   student_log_sum in    [rows]         f32
 *   teacher_max     in    [rows]         f32
 *   teacher_log_sum in    [rows]         f32
 *   sigma           in    [rows]         f32
 *   dce             in    [rows]         f32         absent: 0
 *   dtvd            in    [rows]         f32         absent: 0
 *   has_signs       in    [rows]         i32         absent: nothing is left of forward. Else as forward has written it for
 *                                                    these arguments, with this dstudent, of which nothing has changed
 *                                                    since: one call of backward, as the gradient takes its place
 *   dstudent        out   [rows, vocab]  T           may be either of the logits, without has_signs
 *
 *   sign(0) = 0; with has_signs a single difference that comes out as 0, in a row that is not the teacher's, counts as
 *   positive. p = exp((x - student_max) - student_log_sum): a constant that all logits of a row have in common costs no
 *   digit, and two rows that are equal but for one have a gradient of 0. Rounded once, to T.
 *   Edges: the gradient of an ignored row is 0, whatever comes from above, and its logits are not read. A target out of range
 *   as in forward; on CUDA the gradient of its row is NaN.
 *   Errors, workspace and promises as forward. */
typedef struct liger_ce_tvd_backward_args {
    size_t size;
    liger_tensor student_logits;
    liger_tensor teacher_logits;
    liger_tensor target;
    liger_tensor student_max;
    liger_tensor student_log_sum;
    liger_tensor teacher_max;
    liger_tensor teacher_log_sum;
    liger_tensor sigma;
    liger_tensor dce;
    liger_tensor dtvd;
    liger_tensor has_signs;
    liger_tensor dstudent;
    int64_t ignore_index;
} liger_ce_tvd_backward_args;

#define LIGER_CE_TVD_BACKWARD_ARGS_INIT                                                                                \
    { .size = sizeof(liger_ce_tvd_backward_args), .ignore_index = -100 }

LIGER_API liger_status liger_ce_tvd_backward(liger_context *context, const liger_ce_tvd_backward_args *args,
                                             liger_stream stream);

#ifdef __cplusplus
}
#endif
#endif
