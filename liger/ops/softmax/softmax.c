/* softmax.c - the door of softmax: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/softmax/softmax.h"

#include "liger/core/door_rules.h"
#include "liger/ops/softmax/softmax_problem.h"

enum { ROWS = 1, COLS };

/* clang-format off */
#define DOOR softmax_forward, softmax_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(x),  IN,  FLOAT_T, FOLDED(ROWS, COLS), TO_ROWS(x)},
    {ARG(y),  OUT, T,       LIKE(x),            TO_ROWS(y), MAY_BE(x)},
};
#undef DOOR

#define DOOR softmax_backward, softmax_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(dy), IN,  FLOAT_T, FOLDED(ROWS, COLS), TO_ROWS(dy)},
    {ARG(y),  IN,  T,       LIKE(dy),           TO_ROWS(y)},
    {ARG(dx), OUT, T,       LIKE(dy),           TO_ROWS(dx), MAY_BE(dy, y)},
};
#undef DOOR
/* clang-format on */

const struct door softmax_forward_door = DOOR_OF(softmax_forward, forward_rules);
const struct door softmax_backward_door = DOOR_OF(softmax_backward, backward_rules);

liger_status liger_softmax_forward(liger_context *context, const liger_softmax_forward_args *given,
                                   liger_stream stream) {
    liger_softmax_forward_args args;
    struct softmax_forward_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &softmax_forward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    return context->kernels->softmax_forward(context, &problem, stream);
}

liger_status liger_softmax_backward(liger_context *context, const liger_softmax_backward_args *given,
                                    liger_stream stream) {
    liger_softmax_backward_args args;
    struct softmax_backward_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &softmax_backward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    return context->kernels->softmax_backward(context, &problem, stream);
}
