/* divergence_problem.h - the doors of the divergences (kl_div, jsd, tvd) have these rows and this function in common.
 *
 * A room's problem is a struct whose member `d` is the divergence_problem, and its own options. */
#ifndef LIGER_OPS_DIVERGENCE_PROBLEM_H
#define LIGER_OPS_DIVERGENCE_PROBLEM_H

#include "liger/core/context_state.h"
#include "liger/core/divergences.h"
#include "liger/core/door_rules.h"
#include "liger/core/reduction.h"

/* REDUCTION is no size of a tensor: the liger_reduction. */
enum { ROWS = 1, COLS, REDUCTION };

/* After DOOR. The reduction stands before those whose shape depends on it. */
/* clang-format off */
#define DIVERGENCE_RULES                                                                                               \
    {ARG(x),        IN,  FLOAT_T,    DIMS(2, ROWS, COLS), TO_ROWS(d.x)},                                               \
    {ARG(y),        IN,  T_OR_F32,   LIKE(x),             TO_ROWS(d.y), DTYPE_TO(d.y_dtype)},                          \
    {ARG(labels),   IN,  INDEX,      VECTOR(ROWS),        TO_POINTER(d.labels), DTYPE_TO(d.label_dtype), OPTIONAL},    \
    {INT64(ignore_index), TO(d.ignore_index)},                                                                         \
    {INT32(reduction), BETWEEN(LIGER_REDUCTION_NONE, LIGER_REDUCTION_BATCHMEAN), BINDS(REDUCTION), TO(d.reduction)},   \
    {ARG(upstream), IN,  DTYPE(F32), SHAPE(divergence_fits_upstream), TO_ROWS(d.upstream), OPTIONAL},                  \
    {ARG(loss),     OUT, T_OR_F32,   SHAPE(divergence_fits_loss), TO_ROWS(d.loss), DTYPE_TO(d.loss_dtype), OPTIONAL},  \
    {ARG(dx),       OUT, T,          LIKE(x),             TO_ROWS(d.dx), OPTIONAL, MAY_BE(x)},                         \
    {WORKSPACE(divergence_workspace, x), TO(d.partials)}
/* clang-format on */

liger_status divergence_fits_upstream(const struct door_call *call, const liger_tensor *upstream, const char *what);
liger_status divergence_fits_loss(const struct door_call *call, const liger_tensor *loss, const char *what);
size_t divergence_workspace(const struct door_call *call);

/* What the rules do not fill in; counts the rows that count, where that matters. False in `needed`: there is nothing to do. */
liger_status divergence_begin(liger_context *context, const struct door_call *call, const liger_tensor *upstream,
                              struct divergence_problem *d, liger_stream stream, bool *needed);

/* The door, the public function and its query, after its rules. */
#define DIVERGENCE_DOOR(function, rules) DIVERGENCE_DOOR_AND(function, rules, (void)0)
/* Of a problem that is more than the rules fill in, `complete` makes the rest. */
#define DIVERGENCE_DOOR_AND(function, rules, complete)                                                                 \
    const struct door function##_door = DOOR_OF(function, rules);                                                      \
    liger_status liger_##function(liger_context *context, const liger_##function##_args *given, liger_stream stream) { \
        liger_##function##_args args;                                                                                  \
        struct function##_problem problem = {.d = {.labels = NULL}};                                                   \
        struct door_call call;                                                                                         \
        bool needed;                                                                                                   \
        LIGER_TRY(door_enter(&call, &function##_door, context, given, &args, &problem));                               \
        complete;                                                                                                      \
        LIGER_TRY(divergence_begin(context, &call, &args.upstream, &problem.d, stream, &needed));                      \
        return needed ? context->kernels->function(context, &problem, stream) : LIGER_OK;                              \
    }                                                                                                                  \
    WORKSPACE_QUERY(function)

#endif
