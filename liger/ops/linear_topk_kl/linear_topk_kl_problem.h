/* linear_topk_kl_problem.h - what a backend sees: rows of logits, and of a few of their ids with a teacher's logarithms; and the
 * formulas that both backends end a row with.
 *
 * The slot is the step of a chunk; the products around it are those of chunk/linear_loss.h. A row takes three steps:
 *
 *   take     the logits at its ids are copied aside and summed up, and -inf is left in their places
 *   walk     so one walk over the row is that over its other ids; with what was taken it is the loss, and their gradient
 *   put      the gradient at its ids
 */
#ifndef LIGER_OPS_LINEAR_TOPK_KL_PROBLEM_H
#define LIGER_OPS_LINEAR_TOPK_KL_PROBLEM_H

#include <math.h>

#include "liger/core/counted_rows.h"

/* What is known of a row's ids, with z = logit/temperature; 32 bytes. */
struct linear_topk_kl_listed {
    float max, sum;   /* the largest z, Σ exp(z - max) as the backend sums it */
    float mass, rest; /* Σ q, and 1 - Σ q or 0; both NaN where the row is broken */
    float cross;      /* Σ q·(log q - (z - max)) */
    float rounding;   /* a rest may be by so much what roundings have left */
    float max_of_all; /* set by the walk for what is put: */
    float share;      /* p, or p·Σ q, is exp(z - max_of_all)·share */
};

struct linear_topk_kl_problem {
    liger_dtype dtype, id_dtype, logprob_dtype;
    int64_t rows, vocab, k; /* all 1 or more */
    void *logits;           /* [rows, vocab], lost; with `gradient` they become it */
    int64_t logits_stride;
    const void *ids; /* [rows, k] in [0, vocab), or -1. Of rows that count the CPU's are right */
    int64_t ids_stride;
    const void *logprobs; /* [rows, k] */
    int64_t logprobs_stride;
    struct counted_rows counted; /* of these rows */
    float inverse;               /* 1/temperature, finite and above 0 */
    bool raw_gradient;           /* the gradient is that of the rows' plain sum */
    bool gradient;
    float *loss; /* [rows], weighted; 0 where a row does not count. May be NULL */
    /* Scratch. */
    void *taken;                          /* [rows, k] of dtype */
    struct linear_topk_kl_listed *listed; /* [rows] */
};

/* ---- sums over a row's ids ------------------------------------------------------------------------------------------ */

/* 1 - Σ q of a teacher who is nearly sure cancels. So of the q above 1/2, of which there is one at most, q - 1 is summed, and how
 * many they are. */
struct linear_topk_kl_mass {
    float sure, above, below; /* how many, Σ (q - 1) of them, Σ q of the others */
    float entropy;            /* -Σ q·log q, of those below 1 */
};

#define LINEAR_TOPK_KL_SURE -0.6931471f /* log 1/2 */

LIGER_HOST_DEVICE static inline float linear_topk_kl_unit(liger_dtype dtype) {
    return dtype == LIGER_F32 ? 0x1p-24f : dtype == LIGER_F16 ? 0x1p-11f : 0x1p-8f;
}

/* A row's mass, rest and rounding. */
LIGER_HOST_DEVICE static inline void linear_topk_kl_rest(struct linear_topk_kl_listed *row,
                                                         struct linear_topk_kl_mass mass, liger_dtype logprob_dtype,
                                                         bool broken) {
    const float rest = (1.0f - mass.sure - mass.above) - mass.below;
    row->mass = mass.sure + (mass.above + mass.below);
    row->rounding = 0x1p-10f + linear_topk_kl_unit(logprob_dtype) * mass.entropy;
    row->rest = rest > 0.0f ? rest : 0.0f;
    if (broken || !(rest >= -row->rounding)) row->mass = row->rest = NAN;
}

/* ---- the end of a row ----------------------------------------------------------------------------------------------- */

/* The rest of a row outside of whose ids there is something, or not. */
LIGER_HOST_DEVICE static inline float linear_topk_kl_rest_of(const struct linear_topk_kl_listed *row, bool outside) {
    return !outside && row->rest <= row->rounding ? 0.0f : row->rest;
}

/* The loss. log_sum and log_outside: log Σ exp(z - max_of_all) over all ids, and over those outside. */
LIGER_HOST_DEVICE static inline float linear_topk_kl_loss(const struct linear_topk_kl_listed *row, float rest,
                                                          float max_of_all, float log_sum, float log_outside) {
    const float listed =
        row->mass == 0.0f ? 0.0f : row->cross + (max_of_all - row->max) * row->mass + log_sum * row->mass;
    return listed + (rest == 0.0f ? 0.0f : rest * (logf(rest) - (log_outside - log_sum)));
}

/* What the p of ids is multiplied by before q is taken away: r + Σ q, which is 1 unless r has become 0. */
LIGER_HOST_DEVICE static inline float linear_topk_kl_factor(const struct linear_topk_kl_listed *row, float rest) {
    return rest > 0.0f ? 1.0f : row->mass;
}

/* d row / dz outside is this times p_j/s, the softmax over what is outside: nothing cancels in it however small s is. */
LIGER_HOST_DEVICE static inline float linear_topk_kl_outside(const struct linear_topk_kl_listed *row, float rest,
                                                             float s) {
    return rest > 0.0f ? s - rest : s * row->mass;
}

#endif
