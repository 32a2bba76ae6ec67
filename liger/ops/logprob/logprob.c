/* logprob.c - a composite: the statistics of rows of logits, and their gradient from a copy of the logits that becomes it. */
#include "liger/ops/logprob/logprob.h"

#include "liger/core/door_rules.h"
#include "liger/ops/cross_entropy/cross_entropy_problem.h"
#include "liger/ops/logprob/logprob_problem.h"
#include "liger/ops/row_selection/row_selection_problem.h"

enum { ROWS = 1, VOCAB };

struct backward_problem {
    struct logprob_weights_problem weights;
    struct logits_gradient_problem gradient;
    const void *logits;
    int64_t logits_stride;
    void *workspace;
};

/* A CPU refuses a target out of range before anything is written. */
static liger_status check_targets(liger_context *context, const struct door_call *call, const void *target,
                                  liger_dtype target_dtype, int64_t ignore_index, liger_stream stream) {
    struct cross_entropy_counts counts;
    const struct cross_entropy_count_problem problem = {
        .target = target,
        .target_dtype = target_dtype,
        .rows = call->size[ROWS],
        .vocab = call->size[VOCAB],
        .ignore_index = ignore_index,
        .counts = &counts,
        .op = call->door->function,
    };
    if (context->device != LIGER_DEVICE_CPU) return LIGER_OK;
    return context->kernels->cross_entropy_count(context, &problem, stream);
}

/* clang-format off */
#define OF_ROWS(field) {ARG(field), OUT, DTYPE(F32), VECTOR(ROWS), TO_POINTER(results.field), OPTIONAL}
#define DOOR logprob_forward, logprob_rows_problem
static const struct door_rule forward_rules[] = {
    {ARG(logits),        IN, FLOAT_T, DIMS(2, ROWS, SOME(VOCAB)), TO_PITCHED(logits), PITCH_TO(logits_stride)},
    {ARG(target),        IN, INDEX,   VECTOR(ROWS), TO_POINTER(target), DTYPE_TO(target_dtype)},
    {INT64(ignore_index), TO(ignore_index)},
    {FLOAT(scale),       FINITE,   TO(map.scale)},
    {FLOAT(softcap),     CAP,      TO(map.softcap)},
    {FLOAT(temperature), POSITIVE, TO(map.temperature)},
    OF_ROWS(log_prob), OF_ROWS(entropy), OF_ROWS(lse), OF_ROWS(log_sum_sq_probs), OF_ROWS(mean_logits),
    {ARG(is_top1),    OUT, DTYPE(BOOL), VECTOR(ROWS), TO_POINTER(results.is_top1), OPTIONAL},
    {ARG(normalizer), OUT, DTYPE(F32),  DIMS(2, ROWS, EXACTLY(2)), TO_POINTER(results.normalizer), OPTIONAL},
    {RESERVED(reserved)},
};
#undef DOOR

#define DOOR logprob_backward, backward_problem
#define GIVEN(field, ...) {ARG(field), IN, DTYPE(F32), VECTOR(ROWS), TO_POINTER(weights.field), __VA_ARGS__}
#define UPSTREAM(field) {ARG(d_##field), IN, DTYPE(F32), VECTOR(ROWS), TO_POINTER(weights.upstream.field), OPTIONAL}
static size_t backward_workspace(const struct door_call *call) {
    return (size_t)call->size[ROWS] * sizeof(struct logits_gradient_row);
}
static const struct door_rule backward_rules[] = {
    {ARG(logits),        IN, FLOAT_T, DIMS(2, ROWS, SOME(VOCAB)), TO_PITCHED(logits), PITCH_TO(logits_stride)},
    {ARG(target),        IN, INDEX,   VECTOR(ROWS), TO_POINTER(weights.target), DTYPE_TO(weights.target_dtype)},
    {INT64(ignore_index), TO(weights.ignore_index)},
    {FLOAT(scale),       FINITE,   TO(gradient.map.scale)},
    {FLOAT(softcap),     CAP,      TO(gradient.map.softcap)},
    {FLOAT(temperature), POSITIVE, TO(gradient.map.temperature)},
    GIVEN(log_prob, ONLY_WITH(d_log_prob)),
    {ARG(normalizer),    IN, DTYPE(F32), DIMS(2, ROWS, EXACTLY(2)), TO_POINTER(weights.normalizer)},
    GIVEN(entropy, ONLY_WITH(d_entropy)),
    GIVEN(log_sum_sq_probs, ONLY_WITH(d_log_sum_sq_probs)),
    UPSTREAM(log_prob), UPSTREAM(entropy), UPSTREAM(lse), UPSTREAM(log_sum_sq_probs), UPSTREAM(mean_logits),
    {ARG(dlogits),       OUT, T, LIKE(logits), TO_PITCHED(gradient.logits), PITCH_TO(gradient.logits_stride), MAY_BE(logits)},
    {RESERVED(reserved)},
    {WORKSPACE(backward_workspace, logits), TO(workspace)},
};
#undef DOOR
/* clang-format on */

const struct door logprob_forward_door = DOOR_OF(logprob_forward, forward_rules);
const struct door logprob_backward_door = DOOR_OF(logprob_backward, backward_rules);

liger_status liger_logprob_forward(liger_context *context, const liger_logprob_forward_args *given,
                                   liger_stream stream) {
    liger_logprob_forward_args args;
    struct logprob_rows_problem rows = {.first = 0};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &logprob_forward_door, context, given, &args, &rows));
    if (call.size[ROWS] == 0) return LIGER_OK;
    LIGER_TRY(check_targets(context, &call, rows.target, rows.target_dtype, rows.ignore_index, stream));
    rows.dtype = call.t;
    rows.rows = call.size[ROWS];
    rows.vocab = call.size[VOCAB];
    return context->kernels->logprob_rows(context, &rows, stream);
}

WORKSPACE_QUERY(logprob_backward)

liger_status liger_logprob_backward(liger_context *context, const liger_logprob_backward_args *given,
                                    liger_stream stream) {
    liger_logprob_backward_args args;
    struct backward_problem whole = {.logits = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &logprob_backward_door, context, given, &args, &whole));
    if (call.size[ROWS] == 0) return LIGER_OK;
    struct logprob_weights_problem *weights = &whole.weights;
    struct logits_gradient_problem *gradient = &whole.gradient;
    LIGER_TRY(check_targets(context, &call, weights->target, weights->target_dtype, weights->ignore_index, stream));
    weights->rows = weights->most = gradient->rows = call.size[ROWS];
    weights->vocab = gradient->vocab = gradient->cols = call.size[VOCAB];
    weights->weights = whole.workspace;
    gradient->weights = weights->weights;
    gradient->dtype = call.t;
    const struct row_scatter_problem copy = {
        .x_dtype = call.t,
        .y_dtype = call.t,
        .rows = gradient->rows,
        .cols = gradient->cols,
        .x = whole.logits,
        .x_stride = whole.logits_stride,
        .y = gradient->logits,
        .y_stride = gradient->logits_stride,
    };
    LIGER_TRY(context->kernels->logprob_weights(context, weights, stream));
    if (whole.logits != gradient->logits) LIGER_TRY(context->kernels->row_scatter(context, &copy, stream));
    return context->kernels->logits_gradient(context, gradient, stream);
}
