/* swiglu.c - the door of SwiGLU: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/swiglu/swiglu.h"

#include "liger/core/gated_door.h"
#include "liger/ops/swiglu/swiglu_problem.h"

enum { ROWS = 1, COLS };

/* clang-format off */
#define DOOR swiglu_forward, swiglu_forward_problem
static const struct door_rule forward_rules[] = {
    GATED_FORWARD,
    {FLOAT(gate_multiplier), TO(gate_multiplier)},
    {FLOAT(down_multiplier), TO(down_multiplier)},
    {INT32(activation_dtype), NONE_OR_FLOAT},
    {RESERVED(reserved)},
};
#undef DOOR

#define DOOR swiglu_backward, swiglu_backward_problem
static const struct door_rule backward_rules[] = {
    GATED_BACKWARD,
    {FLOAT(gate_multiplier), TO(gate_multiplier)},
    {FLOAT(down_multiplier), TO(down_multiplier)},
};
#undef DOOR
/* clang-format on */

const struct door swiglu_forward_door = DOOR_OF(swiglu_forward, forward_rules);
const struct door swiglu_backward_door = DOOR_OF(swiglu_backward, backward_rules);

liger_status liger_swiglu_forward(liger_context *context, const liger_swiglu_forward_args *given, liger_stream stream) {
    liger_swiglu_forward_args args;
    struct swiglu_forward_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &swiglu_forward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    problem.activation_dtype = args.activation_dtype ? (liger_dtype)args.activation_dtype : call.t;
    door_join_rows(&call, &problem, &problem.rows, &problem.cols);
    return context->kernels->swiglu_forward(context, &problem, stream);
}

liger_status liger_swiglu_backward(liger_context *context, const liger_swiglu_backward_args *given,
                                   liger_stream stream) {
    liger_swiglu_backward_args args;
    struct swiglu_backward_problem problem = {.dgate = {.data = NULL}};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &swiglu_backward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    if (problem.dgate.data == NULL && problem.dup.data == NULL) return LIGER_OK;
    door_join_rows(&call, &problem, &problem.rows, &problem.cols);
    return context->kernels->swiglu_backward(context, &problem, stream);
}
