/* preference_loss.h - losses on the log-probabilities of whole sequences, and what they ask of each token: between
 * liger_linear_logprob_forward, which makes log_prob, and _backward, which takes d_log_prob. */
#ifndef LIGER_OPS_PREFERENCE_LOSS_H
#define LIGER_OPS_PREFERENCE_LOSS_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The loss of a pair: c and r are the log-probabilities of its chosen and its rejected sequence, C = beta·(c - c_ref) and
 * R = beta·(r - r_ref) their rewards, d = C - R, s = label_smoothing, σ the logistic function. KTO's is of one sequence. */
typedef enum liger_preference_type {
    LIGER_PREFERENCE_SIGMOID = 0,  /* -log σ(d)                          DPO: Rafailov et al. 2023, arXiv 2305.18290 */
    LIGER_PREFERENCE_HINGE = 1,    /* max(0, 1 - d)                                Zhao et al. 2023, arXiv 2305.10425 */
    LIGER_PREFERENCE_EXO_PAIR = 2, /* KL of σ(±d) from 1 - s, s; 0 < s < 1          Ji et al. 2024, arXiv 2402.00856 */
    LIGER_PREFERENCE_NCA_PAIR = 3, /* -log σ(C) - ½ log σ(-C) - ½ log σ(-R)       Chen et al. 2024, arXiv 2402.05369 */
    LIGER_PREFERENCE_ROBUST = 4, /* (s log σ(-d) - (1-s) log σ(d))/(1-2s); s < ½; Chowdhury 2024, arXiv 2403.00409 */
    LIGER_PREFERENCE_BCO_PAIR = 5, /* -log σ(C) - log σ(-R)                       Jung et al. 2024, arXiv 2404.04656 */
    LIGER_PREFERENCE_SPPO_HARD = 6, /* ((C - ½)/beta)² + ((R + ½)/beta)²             Wu et al. 2024, arXiv 2405.00675 */
    LIGER_PREFERENCE_APO_ZERO = 7, /* σ(-C) + σ(R)                      D'Oosterlinck et al. 2024, arXiv 2408.06266 */
    LIGER_PREFERENCE_APO_DOWN = 8, /* σ(C) + σ(-d)                                                          likewise */
    LIGER_PREFERENCE_DISCOPOP = 9, /* -(1-m) log σ(d) + m e^(-d), m = σ(d/tau)      Lu et al. 2024, arXiv 2406.08414 */
    LIGER_PREFERENCE_CPO = 10,     /* -(1-s) log σ(l) - s log σ(-l), l = beta·(c - r); Xu 2024, arXiv 2401.08417 */
    LIGER_PREFERENCE_SIMPO = 11,   /* likewise, l = beta·(c - r) - gamma          Meng et al. 2024, arXiv 2405.14734 */
    LIGER_PREFERENCE_ORPO = 12, /* -beta·log σ(log(odds of c/odds of r))       Hong et al. 2024, arXiv 2403.07691 */
    LIGER_PREFERENCE_KTO = 13   /* σ(∓beta·(log p - ref - kl)), - if desirable: Ethayarajh 2024, arXiv 2402.01306 */
} liger_preference_type;

/* liger_preference_loss     loss = mean over pairs (KTO: over sequences) of the above + alpha·nll
 *
 *   log_prob           in    [sequences, tokens]    f32         contiguous, as all: the [rows] of liger_linear_logprob_forward
 *   target             in    [sequences, tokens]    i32 or i64  a token counts unless it is ignore_index; no other value matters.
 *                                                               Pairs: the chosen sequences, then as many rejected ones
 *   nll_target         in    [sequences/2, tokens]  i32 or i64  likewise, says which tokens of the chosen ones nll counts;
 *                                                               absent: those of target. The head is given either's label
 *   reference          in    [sequences]            f32         log-probabilities under the reference model: what this function
 *                                                               answers as sequence_log_prob. Absent: 0. CPO, SIMPO and ORPO
 *                                                               have none and do not look at it
 *   desirable          in    [sequences]            bool        KTO needs it, nobody else looks at it
 *   kl                 in    one element            f32         KTO's, read on the device; absent: 0
 *   upstream           in    one element            f32         multiplies d_log_prob, read on the device; absent: 1
 *   loss               out   one element            f32         may be absent, as every output
 *   nll                out   one element            f32         mean of -log_prob over the tokens that it counts; KTO's is 0
 *   sequence_log_prob  out   [sequences]            f32         sum over the tokens that count, or their mean if average_log_prob;
 *                                                               SIMPO and ORPO always take the mean
 *   reward             out   [sequences]            f32         beta·(sequence_log_prob - reference)
 *   d_log_prob         out   [sequences, tokens]    f32         upstream·∂loss/∂log_prob, 0 where a token has no part in the loss;
 *                                                               may be log_prob itself, which the head's backward still needs
 *
 *   Edges: a log_prob that does not count is not looked at, NaN or not. A sequence without a token that counts has log-probability
 *   0, and ORPO leaves out its pair, which is still counted in the mean. No token for nll: 0. With alpha 0 nll has no part in
 *   the loss, whatever it is. ORPO takes log-probabilities above -FLT_MIN as that, with the slope of c - r alone. No
 *   sequences: 0. NaN and Inf propagate within their pair and to the loss.
 *   Errors: ARGUMENT, SHAPE, DTYPE, LAYOUT, WORKSPACE.  Workspace: 16 bytes a sequence, see the query.
 *   Same inputs, same bits, any thread count.  Graph-capturable.  Since 0.9. */
typedef struct liger_preference_loss_args {
    size_t size;
    liger_tensor log_prob;
    liger_tensor target;
    liger_tensor nll_target;
    liger_tensor reference;
    liger_tensor desirable;
    liger_tensor kl;
    liger_tensor upstream;
    liger_tensor loss;
    liger_tensor nll;
    liger_tensor sequence_log_prob;
    liger_tensor reward;
    liger_tensor d_log_prob;
    int64_t ignore_index;
    int32_t type;             /* liger_preference_type */
    int32_t average_log_prob; /* 0 or 1 */
    float alpha;              /* finite, as beta and gamma: the weight of nll */
    float beta;               /* SPPO_HARD divides by it */
    float gamma;              /* of SIMPO */
    float label_smoothing;    /* in [0, 1]; of EXO_PAIR, ROBUST, CPO and SIMPO */
    float discopop_tau;       /* finite; DISCOPOP: > 0 */
    int32_t reserved;         /* 0 */
    void *workspace;          /* 256-byte aligned, in the device's memory */
    size_t workspace_bytes;
} liger_preference_loss_args;

#define LIGER_PREFERENCE_LOSS_ARGS_INIT                                                                                \
    {                                                                                                                  \
        .size = sizeof(liger_preference_loss_args), .ignore_index = -100, .beta = 0.1f, .gamma = 0.5f,                 \
        .discopop_tau = 0.05f                                                                                          \
    }

LIGER_API liger_status liger_preference_loss(liger_context *context, const liger_preference_loss_args *args,
                                             liger_stream stream);
LIGER_API liger_status liger_preference_loss_workspace(liger_context *context, const liger_preference_loss_args *args,
                                                       size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
