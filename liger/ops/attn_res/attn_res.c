/* attn_res.c - the door of attn_res: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/attn_res/attn_res.h"

#include "liger/core/door_rules.h"
#include "liger/ops/attn_res/attn_res_problem.h"

enum { ROWS = 1, COLS, STACKED };

static liger_status whole_blocks(struct door_call *call) {
    const int64_t rows = call->size[ROWS], stacked = call->size[STACKED];
    LIGER_REQUIRE(rows > 0 ? stacked > 0 && stacked % rows == 0 : stacked == 0, LIGER_ERR_SHAPE,
                  "%s: v has %lld rows, but must have those of all blocks, of %lld each", call->door->function,
                  (long long)stacked, (long long)rows);
    return LIGER_OK;
}

static size_t workspace_bytes(const struct door_call *call) {
    const int64_t units = attn_res_units(call->context->multiprocessors, call->size[ROWS]);
    return (size_t)(attn_res_sums(call->size[STACKED], 1) + units * call->size[COLS]) * sizeof(float);
}

/* clang-format off */
#define DOOR attn_res_forward, attn_res_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(v),     IN,  FLOAT_T,    MATRIX(STACKED, SOME(COLS)), TO_ROWS(v)},
    {ARG(query), IN,  T_OR_F32,   VECTOR(COLS),                TO_POINTER(query), DTYPE_TO(query_dtype)},
    {ARG(norm),  IN,  T_OR_F32,   VECTOR(COLS),                TO_POINTER(norm),  DTYPE_TO(norm_dtype)},
    {ARG(h),     OUT, T,          MATRIX(ROWS, COLS),          TO_ROWS(h)},
    {CHECK(whole_blocks)},
    {ARG(alpha), OUT, DTYPE(F32), VECTOR(STACKED),             TO_POINTER(alpha)},
    {ARG(rstd),  OUT, DTYPE(F32), VECTOR(STACKED),             TO_POINTER(rstd)},
    {FLOAT(epsilon), AT_LEAST(0), TO(epsilon)},
    {INT32(normal_dtype), NONE_OR_FLOAT, TO(normal_dtype)},
};
#undef DOOR

#define DOOR attn_res_backward, attn_res_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(dh),     IN,  FLOAT_T,    MATRIX(ROWS, SOME(COLS)), TO_ROWS(dh)},
    {ARG(v),      IN,  T,          MATRIX(STACKED, COLS),    TO_ROWS(v)},
    {CHECK(whole_blocks)},
    {ARG(query),  IN,  T_OR_F32,   VECTOR(COLS),             TO_POINTER(query), DTYPE_TO(query_dtype)},
    {ARG(norm),   IN,  T_OR_F32,   VECTOR(COLS),             TO_POINTER(norm),  DTYPE_TO(norm_dtype)},
    {ARG(alpha),  IN,  DTYPE(F32), VECTOR(STACKED),          TO_POINTER(alpha)},
    {ARG(rstd),   IN,  DTYPE(F32), VECTOR(STACKED),          TO_POINTER(rstd)},
    {ARG(dv),     OUT, T,          LIKE(v),                  TO_ROWS(dv),         OPTIONAL, MAY_BE(v)},
    {ARG(dquery), OUT, DTYPE_OF(query), VECTOR(COLS),        TO_POINTER(dquery),  OPTIONAL},
    {ARG(dnorm),  OUT, DTYPE_OF(norm),  VECTOR(COLS),        TO_POINTER(dnorm),   OPTIONAL},
    {INT32(normal_dtype), NONE_OR_FLOAT, TO(normal_dtype)},
    {RESERVED(reserved)},
    {WORKSPACE(workspace_bytes, dh, v), TO(workspace)},
};
#undef DOOR
/* clang-format on */

const struct door attn_res_forward_door = DOOR_OF(attn_res_forward, forward_rules);
const struct door attn_res_backward_door = DOOR_OF(attn_res_backward, backward_rules);

liger_status liger_attn_res_forward(liger_context *context, const liger_attn_res_forward_args *given,
                                    liger_stream stream) {
    liger_attn_res_forward_args args;
    struct attn_res_forward_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &attn_res_forward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    if (problem.normal_dtype == 0) problem.normal_dtype = (int32_t)problem.norm_dtype;
    problem.blocks = call.size[STACKED] / problem.rows;
    return context->kernels->attn_res_forward(context, &problem, stream);
}

liger_status liger_attn_res_backward(liger_context *context, const liger_attn_res_backward_args *given,
                                     liger_stream stream) {
    liger_attn_res_backward_args args;
    struct attn_res_backward_problem problem = {.dv = {.data = NULL}};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &attn_res_backward_door, context, given, &args, &problem));
    const bool some = door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols);
    if (problem.normal_dtype == 0) problem.normal_dtype = (int32_t)problem.norm_dtype;
    problem.units = attn_res_units(context->multiprocessors, problem.rows);
    problem.blocks = problem.rows ? call.size[STACKED] / problem.rows : 0;
    if (!problem.dquery && !problem.dnorm && (!problem.dv.data || !some)) return LIGER_OK;
    return context->kernels->attn_res_backward(context, &problem, stream);
}

WORKSPACE_QUERY(attn_res_backward)
