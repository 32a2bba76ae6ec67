/* logprob_problem.h - the steps of log-probabilities, which heads and losses written on them share.
 *
 *   ids        where in the vocabulary the selected ids stand
 *   rows       the statistics of rows of logits
 *   ignored    the results of rows that were left out of the products
 *   weights    from upstream gradients to one logits_gradient_row for each row
 *   gradient   from that to the gradient of a slice of the logits, in place
 *
 * All of them speak of z = softcap(scale·logit)/temperature, softcap(v) = c·tanh(v/c), and p = softmax(z) over the whole
 * vocabulary. Rows are those of the logits; where rows have been left out, row_of says which row of the batch one is (none,
 * if negative), and whatever is given or asked for by row of the batch is found through it. */
#ifndef LIGER_OPS_LOGPROB_PROBLEM_H
#define LIGER_OPS_LOGPROB_PROBLEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "liger/core/tensor.h"

struct logit_map {
    float scale, softcap, temperature; /* softcap: 0 = none */
};

/* What a row's gradient is made of:
 *   dz_j = p_j·(by_p - (j == target ? 0 : hit) + by_p_log_p·log p_j + by_p_squared·p_j) + constant    p_j = exp(z_j - max - log_sum)
 *   and of the target besides  + own,  which is hit·(1 - p_target) without cancelling. */
struct logits_gradient_row {
    float max, log_sum;
    float by_p, by_p_log_p, by_p_squared, constant;
    float hit, own;
    int64_t target; /* negative: the gradient of this row is 0 */
};

/* Per-token statistics, f32, by row of the batch; each but normalizer may be NULL. */
struct logprob_results {
    float *log_prob;         /* z_target - lse */
    float *entropy;          /* -Σ p log p */
    float *lse;              /* log Σ exp z */
    float *log_sum_sq_probs; /* log Σ p² */
    float *mean_logits;      /* of z */
    uint8_t *is_top1;        /* the target is the first maximum */
    float *selected;         /* [.., selected_count]: z - lse at the selected ids */
    float *normalizer;       /* [.., 2]: the maximum of z, log Σ exp(z - maximum) */
};

struct logprob_rows_problem {
    liger_dtype dtype, target_dtype, selected_dtype;
    int64_t rows, vocab;
    const void *logits; /* [rows, vocab] */
    int64_t logits_stride;
    struct logit_map map;
    int64_t first;         /* the number of the first row here, for results and targets */
    const int64_t *row_of; /* by number, or NULL: the number is the row of the batch */
    const void *target;    /* by row of the batch, contiguous */
    int64_t ignore_index;
    const void *selected_ids; /* [selected_count], or NULL */
    int64_t selected_count;
    struct logprob_results
        results; /* 0 (false) for ignored rows. A target out of range, where it is not refused: NaN */
};

struct logprob_ignored_problem {
    int64_t rows, selected_count;
    const int64_t *place_of;
    const int64_t *count; /* of the selection; NULL: known to be no more than most */
    int64_t most;
    struct logprob_results results; /* 0 where place_of is negative; NaN everywhere if *count > most */
};

struct logprob_ids_problem {
    const void *ids; /* [count] */
    liger_dtype dtype;
    int64_t count, vocab;
    int32_t *first; /* [vocab]: the smallest k with ids[k] = j, or -1. NULL: the ids are looked at, and that is all */
    int32_t *next;  /* [count]: the next larger k with the same id, or -1 */
    const char *op; /* for messages: the CPU refuses ids out of range, CUDA leaves them out */
};

/* Upstream gradients by row of the batch, contiguous f32; each may be NULL, which is 0. */
struct logprob_upstreams {
    const float *log_prob, *entropy, *lse, *log_sum_sq_probs, *mean_logits, *selected;
};

struct logprob_weights_problem {
    liger_dtype target_dtype;
    int64_t rows, vocab, selected_count;
    const int64_t *row_of;
    const int64_t *count; /* likewise */
    int64_t most;         /* *count > most: NaN */
    const void *target;
    int64_t ignore_index;
    const float *log_prob, *normalizer;      /* as rows has written them; log_prob may be NULL if its upstream is */
    const float *entropy, *log_sum_sq_probs; /* NULL if the upstream is */
    struct logprob_upstreams upstream;
    struct logits_gradient_row *weights; /* [rows] */
};

struct logits_gradient_problem {
    liger_dtype dtype;
    int64_t rows, vocab;
    int64_t first, cols; /* the slice */
    void *logits;        /* [rows, cols]; becomes the gradient */
    int64_t logits_stride;
    struct logit_map map;
    const struct logits_gradient_row *weights; /* [rows] */
    /* Selected ids, or NULL: dz of id k of row r gets selected[r·selected_count + k]; their sum is in by_p. */
    const int32_t *id_first, *id_next;
    const float *selected;
    int64_t selected_count;
    const int64_t *row_of;
    const float *class_weight; /* [vocab], or NULL: `constant` is multiplied by it */
};

#endif
