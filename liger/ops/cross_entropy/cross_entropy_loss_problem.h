/* cross_entropy_loss_problem.h - one cross entropy as both doors see it, the plain one and the one behind a linear head:
 * the views and options that they share, how these are checked, and how they become the problems of the three steps.
 *
 * What differs between the doors - where logits come from, where their gradient goes - is not in here. */
#ifndef LIGER_OPS_CROSS_ENTROPY_LOSS_PROBLEM_H
#define LIGER_OPS_CROSS_ENTROPY_LOSS_PROBLEM_H

#include "liger/core/context_state.h"
#include "liger/core/tensor.h"
#include "liger/ops/cross_entropy/cross_entropy_problem.h"

struct cross_entropy_loss_problem {
    const char *op, *weight_name; /* for messages: the function, and what it calls its class weights */
    liger_dtype dtype;            /* of the logits */
    int64_t rows, vocab;
    const liger_tensor *target, *weight, *upstream;
    const liger_tensor *loss, *z_loss, *accuracy, *predicted;
    int64_t ignore_index;
    float label_smoothing, lse_square_scale, softcap;
    int32_t reduction;
    struct cross_entropy_counts *counts;
    void *
        workspace; /* cross_entropy_loss_workspace() bytes: room for counts, then an f32 array of rows for each result */
};

/* The checks, each of its own, because a door reports in the order of its contract. */
liger_status cross_entropy_check_options(const char *op, float label_smoothing, float lse_square_scale, float softcap,
                                         int32_t reduction);
/* target, class weights, upstream. */
liger_status cross_entropy_check_targets(const struct cross_entropy_loss_problem *loss);
/* loss, z_loss, accuracy, predicted. */
liger_status cross_entropy_check_results(const struct cross_entropy_loss_problem *loss);

size_t cross_entropy_loss_workspace(const struct cross_entropy_loss_problem *loss);

liger_status cross_entropy_run_count(liger_context *context, const struct cross_entropy_loss_problem *loss,
                                     liger_stream stream);
/* All rows, without logits and dlogits. */
struct cross_entropy_rows_problem cross_entropy_rows_of(const struct cross_entropy_loss_problem *loss);
liger_status cross_entropy_run_reduce(liger_context *context, const struct cross_entropy_loss_problem *loss,
                                      liger_stream stream);

#endif
