/* scale.c - the door of scale: what it takes, and the problem that a kernel gets. */
#include "liger/ops/scale/scale.h"

#include "liger/core/door_rules.h"
#include "liger/ops/scale/scale_problem.h"

/* clang-format off */
#define DOOR scale, scale_problem
static const struct door_rule rules[] = {
    {ARG(x),     IN,  FLOAT_T,    ANY_SHAPE, TO_POINTER(x), DTYPE_TO(x_dtype)},
    {ARG(scale), IN,  DTYPE(F32), ELEMENT,   TO_POINTER(scale), OPTIONAL},
    {ARG(y),     OUT, ANY_FLOAT,  LIKE(x),   TO_POINTER(y), DTYPE_TO(y_dtype), MAY_BE(x)},
};
#undef DOOR
/* clang-format on */

const struct door scale_door = DOOR_OF(scale, rules);

liger_status liger_scale(liger_context *context, const liger_scale_args *given, liger_stream stream) {
    liger_scale_args args;
    struct scale_problem problem = {.scale = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &scale_door, context, given, &args, &problem));
    problem.count = liger_tensor_elements(&args.x);
    if (problem.count == 0) return LIGER_OK;
    return context->kernels->scale(context, &problem, stream);
}
