/* geglu.c - the door of GeGLU: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/geglu/geglu.h"

#include "liger/core/gated_door.h"
#include "liger/ops/geglu/geglu_problem.h"

enum { ROWS = 1, COLS };

/* clang-format off */
#define DOOR geglu_forward, geglu_forward_problem
static const struct door_rule forward_rules[] = {
    GATED_FORWARD,
    {INT32(activation_dtype), NONE_OR_FLOAT},
    {RESERVED(reserved)},
};
#undef DOOR

#define DOOR geglu_backward, geglu_backward_problem
static const struct door_rule backward_rules[] = {
    GATED_BACKWARD,
};
#undef DOOR
/* clang-format on */

const struct door geglu_forward_door = DOOR_OF(geglu_forward, forward_rules);
const struct door geglu_backward_door = DOOR_OF(geglu_backward, backward_rules);

liger_status liger_geglu_forward(liger_context *context, const liger_geglu_forward_args *given, liger_stream stream) {
    liger_geglu_forward_args args;
    struct geglu_forward_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &geglu_forward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    problem.activation_dtype = args.activation_dtype ? (liger_dtype)args.activation_dtype : call.t;
    door_join_rows(&call, &problem, &problem.rows, &problem.cols);
    return context->kernels->geglu_forward(context, &problem, stream);
}

liger_status liger_geglu_backward(liger_context *context, const liger_geglu_backward_args *given, liger_stream stream) {
    liger_geglu_backward_args args;
    struct geglu_backward_problem problem = {.dgate = {.data = NULL}};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &geglu_backward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    if (problem.dgate.data == NULL && problem.dup.data == NULL) return LIGER_OK;
    door_join_rows(&call, &problem, &problem.rows, &problem.cols);
    return context->kernels->geglu_backward(context, &problem, stream);
}
