/* modulated_rms_norm.c - the door of modulated RMSNorm: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/modulated_rms_norm/modulated_rms_norm.h"

#include "liger/core/door_rules.h"
#include "liger/core/half.h"
#include "liger/ops/modulated_rms_norm/modulated_rms_norm_problem.h"

enum { ROWS = 1, COLS, GROUPS };

static liger_status groups_divide_rows(struct door_call *call) {
    const int64_t rows = call->size[ROWS], groups = call->size[GROUPS];
    LIGER_REQUIRE(groups > 0 ? rows % groups == 0 : rows == 0, LIGER_ERR_SHAPE,
                  "%s: scale has %lld rows, but x has %lld, which are not as many equal groups", call->door->function,
                  (long long)groups, (long long)rows);
    return LIGER_OK;
}

/* clang-format off */
#define OFFSET {FLOAT(offset), TO(offset)}
#define CASTING {INT32(casting), BETWEEN(MODULATED_LLAMA, MODULATED_NONE), TO(casting)}

#define DOOR modulated_rms_norm_forward, modulated_rms_norm_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(x),      IN,  FLOAT_T,  MATRIX(ROWS, SOME(COLS)), TO_ROWS(x)},
    {ARG(weight), IN,  T_OR_F32, VECTOR(COLS),             TO_POINTER(weight), DTYPE_TO(weight_dtype), OPTIONAL},
    {ARG(scale),  IN,  T_OR_F32, MATRIX(GROUPS, COLS),     TO_POINTER(scale),  DTYPE_TO(scale_dtype)},
    {CHECK(groups_divide_rows)},
    {ARG(shift),  IN,  T_OR_F32, MATRIX(GROUPS, COLS),     TO_POINTER(shift),  DTYPE_TO(shift_dtype), OPTIONAL},
    {ARG(y),      OUT, T,        LIKE(x),                  TO_ROWS(y),         MAY_BE(x)},
    {ARG(rstd),   OUT, DTYPE(F32), VECTOR(ROWS),           TO_POINTER(rstd),   OPTIONAL},
    {FLOAT(epsilon), AT_LEAST(0), TO(epsilon)},
    OFFSET,
    CASTING,
    {RESERVED(reserved)},
};
#undef DOOR

static struct norm_groups plan_of(const struct door_call *call) {
    return norm_groups_of(call->context->multiprocessors, call->size[ROWS], call->size[GROUPS],
                          call->size[COLS] * (int64_t)liger_dtype_size(call->t));
}
static size_t partial_bytes(const struct door_call *call) {
    const int32_t casting = ((const liger_modulated_rms_norm_backward_args *)call->args)->casting;
    const int64_t rows = modulated_rms_norm_rows(call->context->multiprocessors, casting);
    return (size_t)(rows * plan_of(call).units * call->size[COLS]) * sizeof(float);
}

#define DOOR modulated_rms_norm_backward, modulated_rms_norm_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(x),       IN,  FLOAT_T,  MATRIX(ROWS, SOME(COLS)), TO_ROWS(x)},
    {ARG(dy),      IN,  T,        LIKE(x),                  TO_ROWS(dy)},
    {ARG(weight),  IN,  T_OR_F32, VECTOR(COLS),             TO_POINTER(weight),  DTYPE_TO(weight_dtype), OPTIONAL},
    {ARG(scale),   IN,  T_OR_F32, MATRIX(GROUPS, COLS),     TO_POINTER(scale),   DTYPE_TO(scale_dtype)},
    {CHECK(groups_divide_rows)},
    {ARG(rstd),    IN,  DTYPE(F32), VECTOR(ROWS),           TO_POINTER(rstd)},
    {ARG(dx),      OUT, T,        LIKE(x),                  TO_ROWS(dx),         OPTIONAL, MAY_BE(dy)},
    {ARG(dweight), OUT, DTYPE_OF(weight), VECTOR(COLS),     TO_POINTER(dweight), OPTIONAL},
    {ARG(dscale),  OUT, DTYPE_OF(scale), LIKE(scale),       TO_POINTER(dscale),  OPTIONAL},
    {ARG(dshift),  OUT, T_OR_F32, MATRIX(GROUPS, COLS),     TO_POINTER(dshift),  DTYPE_TO(shift_dtype), OPTIONAL},
    OFFSET,
    CASTING,
    {WORKSPACE(partial_bytes, x, scale), ONLY_WITH(dweight, dscale, dshift), TO(workspace)},
};
#undef DOOR
/* clang-format on */

const struct door modulated_rms_norm_forward_door = DOOR_OF(modulated_rms_norm_forward, forward_rules);
const struct door modulated_rms_norm_backward_door = DOOR_OF(modulated_rms_norm_backward, backward_rules);

liger_status liger_modulated_rms_norm_forward(liger_context *context,
                                              const liger_modulated_rms_norm_forward_args *given, liger_stream stream) {
    liger_modulated_rms_norm_forward_args args;
    struct modulated_rms_norm_forward_problem problem = {.weight = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &modulated_rms_norm_forward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    problem.group_rows = problem.rows / call.size[GROUPS];
    if (problem.casting == MODULATED_NONE) problem.epsilon = f32_round_to(call.t, problem.epsilon);
    if (problem.casting == MODULATED_NONE) problem.offset = f32_round_to(call.t, problem.offset);
    return context->kernels->modulated_rms_norm_forward(context, &problem, stream);
}

liger_status liger_modulated_rms_norm_backward(liger_context *context,
                                               const liger_modulated_rms_norm_backward_args *given,
                                               liger_stream stream) {
    liger_modulated_rms_norm_backward_args args;
    struct modulated_rms_norm_backward_problem problem = {.weight = NULL, .weight_dtype = LIGER_F32};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &modulated_rms_norm_backward_door, context, given, &args, &problem));
    const bool some = door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols);
    problem.plan = plan_of(&call);
    const bool parameters = problem.dweight || problem.dscale || problem.dshift;
    if (!parameters && (problem.dx.data == NULL || !some)) return LIGER_OK;
    return context->kernels->modulated_rms_norm_backward(context, &problem, stream);
}

WORKSPACE_QUERY(modulated_rms_norm_backward)
