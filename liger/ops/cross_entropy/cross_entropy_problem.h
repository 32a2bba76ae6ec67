/* cross_entropy_problem.h - the three steps of a cross entropy, shared by the plain and the fused linear loss.
 *
 *   count   over all targets of the batch: how many are valid, what their class weights add up to
 *   rows    per row: loss, z-loss, accuracy, prediction, gradient of the logits - already divided by the counts
 *   reduce  over rows, in a fixed order: the scalars that the caller asked for
 *
 * The fused loss runs count once, rows chunk by chunk (in place, over its private logits), and reduce once. */
#ifndef LIGER_OPS_CROSS_ENTROPY_PROBLEM_H
#define LIGER_OPS_CROSS_ENTROPY_PROBLEM_H

#include <stdbool.h>
#include <stdint.h>

#include "liger/core/tensor.h"
#include "liger/ops/logprob/logprob_problem.h"

/* In the device's memory, written by count, read by rows and reduce. */
struct cross_entropy_counts {
    float valid;       /* targets that are not ignore_index (out-of-range ones count too) */
    float weight_sum;  /* sum of weight[target] over valid rows with an in-range target; == valid without weights */
    float class_total; /* sum of all class weights; 0 without weights */
    float reserved;
};

struct cross_entropy_count_problem {
    const void *target; /* [rows], contiguous */
    liger_dtype target_dtype;
    int64_t rows, vocab, ignore_index;
    bool any_label;      /* they only say which rows count: no vocabulary, none is out of range */
    const float *weight; /* [vocab] class weights, or NULL */
    struct cross_entropy_counts *counts;
    const char *op; /* for the message of an out-of-range target. The CPU refuses it; CUDA does not look */
};

struct cross_entropy_rows_problem {
    liger_dtype dtype, target_dtype;
    int64_t rows, vocab;
    const void *logits; /* [rows, vocab], never written unless it is dlogits */
    int64_t logits_stride;
    const void *target;  /* [rows], contiguous */
    const float *weight; /* [vocab], or NULL */
    const struct cross_entropy_counts *counts;
    int64_t ignore_index;
    float label_smoothing, lse_square_scale;
    float softcap; /* 0 = none */
    bool mean;     /* divide loss and z-loss (and the gradient, unless raw_gradient) by the counts */
    /* fp16 in the fused loss: the gradient times its normaliser (weight_sum, or valid), i.e. what "sum" gives but for the
     * z-loss term of a weighted mean, which is multiplied by weight_sum/valid. */
    bool raw_gradient;
    bool token_scaling; /* loss, z-loss and gradient of a row times softmax(logits)[target] */
    /* Upstream gradient, applied in f32 before the rounding; NULL = 1. */
    const float *upstream;
    int64_t upstream_stride; /* 0: one scalar for all rows; 1: one per row */
    /* Outputs; each may be NULL. */
    float *loss, *z_loss, *accuracy; /* [rows] */
    int64_t *predicted;              /* [rows]; -1 for ignored rows */
    void *dlogits;                   /* [rows, vocab], dtype; may be logits itself */
    int64_t dlogits_stride;
    /* [rows]: what logits_gradient makes the same gradient from, later; with label smoothing and class weights it has to be
     * told the latter. */
    struct logits_gradient_row *gradient;
};

struct cross_entropy_reduce_problem {
    int64_t rows;
    const struct cross_entropy_counts *counts;
    const float *loss, *z_loss, *accuracy; /* [rows], each may be NULL */
    /* 0-d results (or with `unreduced`, [rows]) of the dtype beside them; NULL where the row array is NULL. */
    void *loss_out, *z_loss_out;
    float *accuracy_out;
    liger_dtype loss_dtype, z_loss_dtype;
    bool unreduced; /* reduction "none": round each row to its dtype */
};

#endif
