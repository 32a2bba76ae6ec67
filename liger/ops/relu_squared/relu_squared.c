/* relu_squared.c - the door of relu_squared: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/relu_squared/relu_squared.h"

#include "liger/core/door_rules.h"
#include "liger/ops/relu_squared/relu_squared_problem.h"

enum { ROWS = 1, COLS };

/* clang-format off */
#define DOOR relu_squared_forward, relu_squared_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(x),  IN,  FLOAT_T, FOLDED(ROWS, COLS), TO_ROWS(x)},
    {ARG(y),  OUT, T,       LIKE(x),            TO_ROWS(y), MAY_BE(x)},
};
#undef DOOR

#define DOOR relu_squared_backward, relu_squared_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(dy), IN,  FLOAT_T, FOLDED(ROWS, COLS), TO_ROWS(dy)},
    {ARG(x),  IN,  T,       LIKE(dy),           TO_ROWS(x)},
    {ARG(dx), OUT, T,       LIKE(dy),           TO_ROWS(dx), MAY_BE(dy, x)},
};
#undef DOOR
/* clang-format on */

const struct door relu_squared_forward_door = DOOR_OF(relu_squared_forward, forward_rules);
const struct door relu_squared_backward_door = DOOR_OF(relu_squared_backward, backward_rules);

liger_status liger_relu_squared_forward(liger_context *context, const liger_relu_squared_forward_args *given,
                                        liger_stream stream) {
    liger_relu_squared_forward_args args;
    struct relu_squared_forward_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &relu_squared_forward_door, context, given, &args, &problem));
    problem.dtype = call.t;
    problem.rows = call.size[ROWS];
    problem.cols = call.size[COLS];
    if (problem.rows == 0 || problem.cols == 0) return LIGER_OK;
    liger_rows *const views[] = {&problem.x, &problem.y};
    liger_join_rows(&problem.rows, &problem.cols, views, 2);
    return context->kernels->relu_squared_forward(context, &problem, stream);
}

liger_status liger_relu_squared_backward(liger_context *context, const liger_relu_squared_backward_args *given,
                                         liger_stream stream) {
    liger_relu_squared_backward_args args;
    struct relu_squared_backward_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &relu_squared_backward_door, context, given, &args, &problem));
    problem.dtype = call.t;
    problem.rows = call.size[ROWS];
    problem.cols = call.size[COLS];
    if (problem.rows == 0 || problem.cols == 0) return LIGER_OK;
    liger_rows *const views[] = {&problem.dy, &problem.x, &problem.dx};
    liger_join_rows(&problem.rows, &problem.cols, views, 3);
    return context->kernels->relu_squared_backward(context, &problem, stream);
}
