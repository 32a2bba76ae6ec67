/* rms_norm.c - the door of RMSNorm and add+RMSNorm: what their functions take, and the problem that a kernel gets. */
#include "liger/ops/rms_norm/rms_norm.h"

#include "liger/core/door_rules.h"
#include "liger/core/half.h"
#include "liger/ops/rms_norm/rms_norm_problem.h"

enum { ROWS = 1, COLS };

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* clang-format off */
#define EPSILON {FLOAT(epsilon), AT_LEAST(0), TO(epsilon)}
#define OFFSET {FLOAT(offset), TO(offset)}
#define CASTING {INT32(casting), BETWEEN(LIGER_CAST_LLAMA, LIGER_CAST_NONE), TO(casting)}

#define DOOR rms_norm_forward, rms_norm_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(x),      IN,  FLOAT_T,  MATRIX(ROWS, SOME(COLS)), TO_ROWS(x)},
    {ARG(weight), IN,  T_OR_F32, VECTOR(COLS),             TO_POINTER(weight), DTYPE_TO(weight_dtype), OPTIONAL},
    {ARG(y),      OUT, T,        LIKE(x),                  TO_ROWS(y),         MAY_BE(x)},
    {ARG(rstd),   OUT, DTYPE(F32), VECTOR(ROWS),           TO_POINTER(rstd),   OPTIONAL},
    EPSILON,
    OFFSET,
    CASTING,
    {RESERVED(reserved)},
};
#undef DOOR

#define DOOR add_rms_norm_forward, rms_norm_forward_problem
static const struct door_rule add_forward_rules[] = {
    {ARG(x),        IN,  FLOAT_T,  MATRIX(ROWS, SOME(COLS)), TO_ROWS(x)},
    {ARG(residual), IN,  T,        LIKE(x),                  TO_ROWS(residual)},
    {ARG(weight),   IN,  T_OR_F32, VECTOR(COLS),             TO_POINTER(weight), DTYPE_TO(weight_dtype), OPTIONAL},
    {ARG(y),        OUT, T,        LIKE(x),                  TO_ROWS(y),         MAY_BE(x, residual)},
    {ARG(sum),      OUT, T,        LIKE(x),                  TO_ROWS(sum),       MAY_BE(x, residual)},
    {ARG(rstd),     OUT, DTYPE(F32), VECTOR(ROWS),           TO_POINTER(rstd),   OPTIONAL},
    EPSILON,
    OFFSET,
    CASTING,
    {RESERVED(reserved)},
};
#undef DOOR
/* clang-format on */

const struct door rms_norm_forward_door = DOOR_OF(rms_norm_forward, forward_rules);
const struct door add_rms_norm_forward_door = DOOR_OF(add_rms_norm_forward, add_forward_rules);

static liger_status run_forward(liger_context *context, const struct door_call *call,
                                struct rms_norm_forward_problem *problem, liger_stream stream) {
    const bool none = problem->casting == LIGER_CAST_NONE;
    problem->function = call->door->function;
    if (!door_matrix(call, &problem->dtype, &problem->rows, &problem->cols)) return LIGER_OK;
    if (problem->weight == NULL) problem->weight_dtype = call->t;
    if (none) problem->epsilon = f32_round_to(call->t, problem->epsilon);
    if (none) problem->offset = f32_round_to(call->t, problem->offset);
    return context->kernels->rms_norm_forward(context, problem, stream);
}

liger_status liger_rms_norm_forward(liger_context *context, const liger_rms_norm_forward_args *given,
                                    liger_stream stream) {
    liger_rms_norm_forward_args args;
    struct rms_norm_forward_problem problem = {.weight = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &rms_norm_forward_door, context, given, &args, &problem));
    return run_forward(context, &call, &problem, stream);
}

liger_status liger_add_rms_norm_forward(liger_context *context, const liger_add_rms_norm_forward_args *given,
                                        liger_stream stream) {
    liger_add_rms_norm_forward_args args;
    struct rms_norm_forward_problem problem = {.weight = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &add_rms_norm_forward_door, context, given, &args, &problem));
    return run_forward(context, &call, &problem, stream);
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

static int64_t partials_of(const struct door_call *call) {
    const int64_t row_bytes = call->size[COLS] * (int64_t)liger_dtype_size(call->t);
    return norm_partials(call->context->multiprocessors, call->size[ROWS], row_bytes);
}

static size_t partial_bytes(const struct door_call *call) {
    return (size_t)(partials_of(call) * call->size[COLS]) * sizeof(float);
}

/* clang-format off */
#define DOOR rms_norm_backward, rms_norm_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(x),       IN,  FLOAT_T,  MATRIX(ROWS, SOME(COLS)), TO_ROWS(x)},
    {ARG(dy),      IN,  T,        LIKE(x),                  TO_ROWS(dy)},
    {ARG(weight),  IN,  T_OR_F32, VECTOR(COLS),             TO_POINTER(weight),  DTYPE_TO(weight_dtype), OPTIONAL},
    {ARG(rstd),    IN,  DTYPE(F32), VECTOR(ROWS),           TO_POINTER(rstd)},
    {ARG(dx),      OUT, T,        LIKE(x),                  TO_ROWS(dx),         OPTIONAL, MAY_BE(dy)},
    {ARG(dweight), OUT, DTYPE_OF(weight), VECTOR(COLS),     TO_POINTER(dweight), OPTIONAL},
    OFFSET,
    CASTING,
    {WORKSPACE(partial_bytes, x), ONLY_WITH(dweight), TO(workspace)},
};
#undef DOOR

#define DOOR add_rms_norm_backward, rms_norm_backward_problem
static const struct door_rule add_backward_rules[] = {
    {ARG(sum),     IN,  FLOAT_T,  MATRIX(ROWS, SOME(COLS)), TO_ROWS(x)},
    {ARG(dy),      IN,  T,        LIKE(sum),                TO_ROWS(dy)},
    {ARG(dsum),    IN,  T,        LIKE(sum),                TO_ROWS(dsum),       OPTIONAL},
    {ARG(weight),  IN,  T_OR_F32, VECTOR(COLS),             TO_POINTER(weight),  DTYPE_TO(weight_dtype), OPTIONAL},
    {ARG(rstd),    IN,  DTYPE(F32), VECTOR(ROWS),           TO_POINTER(rstd)},
    {ARG(dx),      OUT, T,        LIKE(sum),                TO_ROWS(dx),         OPTIONAL, MAY_BE(dy, dsum)},
    {ARG(dweight), OUT, DTYPE_OF(weight), VECTOR(COLS),     TO_POINTER(dweight), OPTIONAL},
    OFFSET,
    CASTING,
    {WORKSPACE(partial_bytes, sum), ONLY_WITH(dweight), TO(workspace)},
};
#undef DOOR
/* clang-format on */

const struct door rms_norm_backward_door = DOOR_OF(rms_norm_backward, backward_rules);
const struct door add_rms_norm_backward_door = DOOR_OF(add_rms_norm_backward, add_backward_rules);

static liger_status run_backward(liger_context *context, const struct door_call *call,
                                 struct rms_norm_backward_problem *problem, liger_stream stream) {
    const bool some = door_matrix(call, &problem->dtype, &problem->rows, &problem->cols);
    problem->function = call->door->function;
    if (problem->weight == NULL) problem->weight_dtype = LIGER_F32;
    problem->partials = partials_of(call);
    if (problem->dweight == NULL && (problem->dx.data == NULL || !some)) return LIGER_OK;
    return context->kernels->rms_norm_backward(context, problem, stream);
}

liger_status liger_rms_norm_backward(liger_context *context, const liger_rms_norm_backward_args *given,
                                     liger_stream stream) {
    liger_rms_norm_backward_args args;
    struct rms_norm_backward_problem problem = {.weight = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &rms_norm_backward_door, context, given, &args, &problem));
    return run_backward(context, &call, &problem, stream);
}

liger_status liger_add_rms_norm_backward(liger_context *context, const liger_add_rms_norm_backward_args *given,
                                         liger_stream stream) {
    liger_add_rms_norm_backward_args args;
    struct rms_norm_backward_problem problem = {.weight = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &add_rms_norm_backward_door, context, given, &args, &problem));
    return run_backward(context, &call, &problem, stream);
}

WORKSPACE_QUERY(rms_norm_backward)

WORKSPACE_QUERY(add_rms_norm_backward)
