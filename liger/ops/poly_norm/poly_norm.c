/* poly_norm.c - the door of PolyNorm: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/poly_norm/poly_norm.h"

#include "liger/core/door_rules.h"
#include "liger/ops/poly_norm/poly_norm_problem.h"

enum { ROWS = 1, COLS };

static int64_t partials_of(const struct door_call *call) {
    const int64_t row_bytes = call->size[COLS] * (int64_t)liger_dtype_size(call->t);
    return norm_partials(call->context->multiprocessors, call->size[ROWS], row_bytes);
}

static size_t total_bytes(const struct door_call *call) {
    return (size_t)(4 * NORM_TOTALS_OF_A_PARTIAL * partials_of(call)) * sizeof(float);
}

/* clang-format off */
#define DOOR poly_norm_forward, poly_norm_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(x),       IN,  FLOAT_T,          MATRIX(ROWS, SOME(COLS)),  TO_ROWS(x)},
    {ARG(weight),  IN,  T_OR_F32,         VECTOR(EXACTLY(3)),        TO_POINTER(weight), DTYPE_TO(weight_dtype)},
    {ARG(bias),    IN,  DTYPE_OF(weight), ELEMENT,                   TO_POINTER(bias)},
    {ARG(y),       OUT, T,                LIKE(x),                   TO_ROWS(y), MAY_BE(x)},
    {ARG(rstd),    OUT, DTYPE(F32),       DIMS(2, ROWS, EXACTLY(3)), TO_POINTER(rstd), OPTIONAL},
    {FLOAT(epsilon), AT_LEAST(0), TO(epsilon)},
    {RESERVED(reserved)},
};
#undef DOOR

#define DOOR poly_norm_backward, poly_norm_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(x),       IN,  FLOAT_T,          MATRIX(ROWS, SOME(COLS)),  TO_ROWS(x)},
    {ARG(dy),      IN,  T,                LIKE(x),                   TO_ROWS(dy)},
    {ARG(weight),  IN,  T_OR_F32,         VECTOR(EXACTLY(3)),        TO_POINTER(weight), DTYPE_TO(weight_dtype)},
    {ARG(rstd),    IN,  DTYPE(F32),       DIMS(2, ROWS, EXACTLY(3)), TO_POINTER(rstd)},
    {ARG(dx),      OUT, T,                LIKE(x),                   TO_ROWS(dx),         OPTIONAL, MAY_BE(dy)},
    {ARG(dweight), OUT, DTYPE_OF(weight), VECTOR(EXACTLY(3)),        TO_POINTER(dweight), OPTIONAL},
    {ARG(dbias),   OUT, DTYPE_OF(weight), ELEMENT,                   TO_POINTER(dbias),   OPTIONAL},
    {WORKSPACE(total_bytes, x), ONLY_WITH(dweight, dbias), TO(workspace)},
};
#undef DOOR
/* clang-format on */

const struct door poly_norm_forward_door = DOOR_OF(poly_norm_forward, forward_rules);
const struct door poly_norm_backward_door = DOOR_OF(poly_norm_backward, backward_rules);

liger_status liger_poly_norm_forward(liger_context *context, const liger_poly_norm_forward_args *given,
                                     liger_stream stream) {
    liger_poly_norm_forward_args args;
    struct poly_norm_forward_problem problem = {.rstd = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &poly_norm_forward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    return context->kernels->poly_norm_forward(context, &problem, stream);
}

liger_status liger_poly_norm_backward(liger_context *context, const liger_poly_norm_backward_args *given,
                                      liger_stream stream) {
    liger_poly_norm_backward_args args;
    struct poly_norm_backward_problem problem = {.dweight = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &poly_norm_backward_door, context, given, &args, &problem));
    const bool some = door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols);
    problem.partials = partials_of(&call);
    const bool parameters = problem.dweight != NULL || problem.dbias != NULL;
    if (!parameters && (problem.dx.data == NULL || !some)) return LIGER_OK;
    return context->kernels->poly_norm_backward(context, &problem, stream);
}

WORKSPACE_QUERY(poly_norm_backward)
