/* dyt.c - the door of dynamic tanh: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/dyt/dyt.h"

#include "liger/core/door_rules.h"
#include "liger/ops/dyt/dyt_problem.h"

enum { ROWS = 1, COLS };

static int64_t partials_of(const struct door_call *call) {
    const int64_t row_bytes = call->size[COLS] * (int64_t)liger_dtype_size(call->t);
    return dyt_partials(call->context->multiprocessors, call->size[ROWS], row_bytes);
}

static size_t partial_bytes(const struct door_call *call) {
    const int64_t partials = partials_of(call), cols = call->size[COLS];
    return (size_t)(2 * partials * cols + dyt_totals(partials, cols)) * sizeof(float);
}

/* clang-format off */
#define DOOR dyt_forward, dyt_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(x),      IN,  FLOAT_T,         MATRIX(ROWS, SOME(COLS)), TO_ROWS(x)},
    {ARG(alpha),  IN,  T_OR_F32,        ELEMENT,                  TO_POINTER(alpha), DTYPE_TO(alpha_dtype)},
    {ARG(gamma),  IN,  T_OR_F32,        VECTOR(COLS),             TO_POINTER(gamma), DTYPE_TO(weight_dtype)},
    {ARG(beta),   IN,  DTYPE_OF(gamma), VECTOR(COLS),             TO_POINTER(beta),  OPTIONAL},
    {ARG(y),      OUT, T,               LIKE(x),                  TO_ROWS(y),        MAY_BE(x)},
};
#undef DOOR

#define DOOR dyt_backward, dyt_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(x),      IN,  FLOAT_T,         MATRIX(ROWS, SOME(COLS)), TO_ROWS(x)},
    {ARG(dy),     IN,  T,               LIKE(x),                  TO_ROWS(dy)},
    {ARG(alpha),  IN,  T_OR_F32,        ELEMENT,                  TO_POINTER(alpha), DTYPE_TO(alpha_dtype)},
    {ARG(gamma),  IN,  T_OR_F32,        VECTOR(COLS),             TO_POINTER(gamma), DTYPE_TO(weight_dtype)},
    {ARG(dx),     OUT, T,               LIKE(x),                  TO_ROWS(dx),        OPTIONAL, MAY_BE(dy, x)},
    {ARG(dalpha), OUT, DTYPE_OF(alpha), ELEMENT,                  TO_POINTER(dalpha), OPTIONAL},
    {ARG(dgamma), OUT, DTYPE_OF(gamma), VECTOR(COLS),             TO_POINTER(dgamma), OPTIONAL},
    {ARG(dbeta),  OUT, DTYPE_OF(gamma), VECTOR(COLS),             TO_POINTER(dbeta),  OPTIONAL},
    {WORKSPACE(partial_bytes, x), ONLY_WITH(dalpha, dgamma, dbeta), TO(workspace)},
};
#undef DOOR
/* clang-format on */

const struct door dyt_forward_door = DOOR_OF(dyt_forward, forward_rules);
const struct door dyt_backward_door = DOOR_OF(dyt_backward, backward_rules);

liger_status liger_dyt_forward(liger_context *context, const liger_dyt_forward_args *given, liger_stream stream) {
    liger_dyt_forward_args args;
    struct dyt_forward_problem problem = {.beta = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &dyt_forward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    return context->kernels->dyt_forward(context, &problem, stream);
}

liger_status liger_dyt_backward(liger_context *context, const liger_dyt_backward_args *given, liger_stream stream) {
    liger_dyt_backward_args args;
    struct dyt_backward_problem problem = {.dalpha = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &dyt_backward_door, context, given, &args, &problem));
    const bool some = door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols);
    problem.partials = partials_of(&call);
    const bool parameters = problem.dalpha != NULL || problem.dgamma != NULL || problem.dbeta != NULL;
    if (!parameters && (problem.dx.data == NULL || !some)) return LIGER_OK;
    return context->kernels->dyt_backward(context, &problem, stream);
}

WORKSPACE_QUERY(dyt_backward)
