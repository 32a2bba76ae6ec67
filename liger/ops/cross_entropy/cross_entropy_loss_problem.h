/* cross_entropy_loss_problem.h - one cross entropy as both doors see it, the plain one and the one behind a linear head:
 * the rows of their tables that they share, and how it becomes the problems of the three steps.
 *
 * What differs between the doors - where logits come from, where their gradient goes - is not in here. */
#ifndef LIGER_OPS_CROSS_ENTROPY_LOSS_PROBLEM_H
#define LIGER_OPS_CROSS_ENTROPY_LOSS_PROBLEM_H

#include "liger/core/context_state.h"
#include "liger/core/door_rules.h"
#include "liger/core/tensor.h"
#include "liger/ops/cross_entropy/cross_entropy_problem.h"

struct cross_entropy_loss_problem {
    const char *op; /* the function, for messages */
    liger_dtype dtype, target_dtype, loss_dtype, z_loss_dtype;
    int64_t rows, vocab;
    const void *target;
    const float *weight, *upstream; /* or NULL */
    bool upstream_by_row;
    void *loss, *z_loss; /* results: each may be NULL */
    float *accuracy;
    int64_t *predicted;
    int64_t ignore_index;
    float label_smoothing, lse_square_scale, softcap;
    int32_t reduction;
    struct cross_entropy_counts *counts;
    void *workspace; /* cross_entropy_loss_workspace() bytes */
};

/* The sizes that both doors know; their own begin behind. REDUCTION is none of a tensor: the liger_reduction. */
enum { ROWS = 1, VOCAB, REDUCTION, CROSS_ENTROPY_SIZES };

/* Rows of a door's table whose problem has the member `loss`. */
#define CROSS_ENTROPY_INPUTS(weight_field)                                                                             \
    {ARG(target), IN, INDEX, VECTOR(ROWS), TO_POINTER(loss.target), DTYPE_TO(loss.target_dtype)},                      \
        {ARG(weight_field), IN, DTYPE(F32), VECTOR(VOCAB), TO_POINTER(loss.weight), OPTIONAL}, {                       \
        ARG(upstream), IN, DTYPE(F32), ELEMENT_OR(ROWS), TO_POINTER(loss.upstream), OPTIONAL                           \
    }
#define CROSS_ENTROPY_OPTIONS                                                                                          \
    {INT64(ignore_index), TO(loss.ignore_index)}, {FLOAT(label_smoothing), BETWEEN(0, 1), TO(loss.label_smoothing)},   \
        {FLOAT(lse_square_scale), FINITE, TO(loss.lse_square_scale)}, {FLOAT(softcap), CAP, TO(loss.softcap)}, {       \
        INT32(reduction), BETWEEN(LIGER_REDUCTION_NONE, LIGER_REDUCTION_SUM), BINDS(REDUCTION), TO(loss.reduction)     \
    }
/* After the options: a result's shape depends on the reduction. */
#define CROSS_ENTROPY_RESULTS                                                                                          \
    {ARG(loss), OUT, T_OR_F32, SHAPE(cross_entropy_fits_result), TO_POINTER(loss.loss), DTYPE_TO(loss.loss_dtype),     \
     OPTIONAL},                                                                                                        \
        {ARG(z_loss),                                                                                                  \
         OUT,                                                                                                          \
         T_OR_F32,                                                                                                     \
         SHAPE(cross_entropy_fits_result),                                                                             \
         TO_POINTER(loss.z_loss),                                                                                      \
         DTYPE_TO(loss.z_loss_dtype),                                                                                  \
         OPTIONAL},                                                                                                    \
        {ARG(accuracy), OUT, DTYPE(F32), SHAPE(cross_entropy_fits_result), TO_POINTER(loss.accuracy), OPTIONAL}, {     \
        ARG(predicted), OUT, DTYPE(I64), VECTOR(ROWS), TO_POINTER(loss.predicted), OPTIONAL                            \
    }

/* One value, or one per row with reduction NONE. */
liger_status cross_entropy_fits_result(const struct door_call *call, const liger_tensor *result, const char *what);

/* What the rows above do not fill in, but for counts and workspace. */
void cross_entropy_finish(const struct door_call *call, const liger_tensor *upstream,
                          struct cross_entropy_loss_problem *loss);

/* Room for counts, then for an f32 array of rows for each of loss, z_loss and accuracy that there is. */
size_t cross_entropy_loss_workspace(int64_t rows, bool loss, bool z_loss, bool accuracy);

liger_status cross_entropy_run_count(liger_context *context, const struct cross_entropy_loss_problem *loss,
                                     liger_stream stream);
/* All rows, without logits and dlogits. */
struct cross_entropy_rows_problem cross_entropy_rows_of(const struct cross_entropy_loss_problem *loss);
liger_status cross_entropy_run_reduce(liger_context *context, const struct cross_entropy_loss_problem *loss,
                                      liger_stream stream);

#endif
