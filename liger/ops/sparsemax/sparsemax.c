/* sparsemax.c - the door of sparsemax: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/sparsemax/sparsemax.h"

#include "liger/core/door_rules.h"
#include "liger/ops/sparsemax/sparsemax_problem.h"

enum { ROWS = 1, COLS, WORDS };

static liger_status bind_words(struct door_call *call) {
    call->bound |= 1u << WORDS;
    call->size[WORDS] = support_words(call->size[COLS]);
    return LIGER_OK;
}

/* clang-format off */
#define DOOR sparsemax_forward, sparsemax_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(x),       IN,  FLOAT_T,    FOLDED(ROWS, COLS),   TO_ROWS(x)},
    {ARG(y),       OUT, T,          LIKE(x),              TO_ROWS(y),         MAY_BE(x)},
    {CHECK(bind_words)},
    {ARG(support), OUT, DTYPE(I32), DIMS(2, ROWS, WORDS), TO_POINTER(support)},
};
#undef DOOR

#define DOOR sparsemax_backward, sparsemax_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(dy),      IN,  FLOAT_T,    FOLDED(ROWS, COLS),   TO_ROWS(dy)},
    {CHECK(bind_words)},
    {ARG(support), IN,  DTYPE(I32), DIMS(2, ROWS, WORDS), TO_POINTER(support)},
    {ARG(dx),      OUT, T,          LIKE(dy),             TO_ROWS(dx),        MAY_BE(dy)},
};
#undef DOOR
/* clang-format on */

const struct door sparsemax_forward_door = DOOR_OF(sparsemax_forward, forward_rules);
const struct door sparsemax_backward_door = DOOR_OF(sparsemax_backward, backward_rules);

liger_status liger_sparsemax_forward(liger_context *context, const liger_sparsemax_forward_args *given,
                                     liger_stream stream) {
    liger_sparsemax_forward_args args;
    struct sparsemax_forward_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &sparsemax_forward_door, context, given, &args, &problem));
    problem.dtype = call.t;
    problem.rows = call.size[ROWS];
    problem.cols = call.size[COLS];
    if (problem.rows == 0 || problem.cols == 0) return LIGER_OK;
    return context->kernels->sparsemax_forward(context, &problem, stream);
}

liger_status liger_sparsemax_backward(liger_context *context, const liger_sparsemax_backward_args *given,
                                      liger_stream stream) {
    liger_sparsemax_backward_args args;
    struct sparsemax_backward_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &sparsemax_backward_door, context, given, &args, &problem));
    problem.dtype = call.t;
    problem.rows = call.size[ROWS];
    problem.cols = call.size[COLS];
    if (problem.rows == 0 || problem.cols == 0) return LIGER_OK;
    return context->kernels->sparsemax_backward(context, &problem, stream);
}
