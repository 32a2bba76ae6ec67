/* int2_matmul.c - the door of int2_matmul: what it takes, and the problem that a kernel gets. */
#include "liger/ops/int2_matmul/int2_matmul.h"

#include "liger/core/door_rules.h"
#include "liger/ops/int2_matmul/int2_matmul_problem.h"

enum { ROWS = 1, COLS, PACKED };

#define DOOR int2_matmul, int2_matmul_problem

/* Any strides: what a view of one row or column says of them does not matter. */
static liger_status lower_weights(const liger_tensor *b, const char *what, void *to) {
    (void)what;
    *(struct int2_weights *)to = (struct int2_weights){b->data, b->stride[0], b->stride[1]};
    return LIGER_OK;
}

static size_t unpacked_bytes(const struct door_call *call) {
    if (call->context->device == LIGER_DEVICE_CPU) return 0;
    return int2_unpacked_bytes(call->size[ROWS], call->size[COLS], call->size[PACKED]);
}

/* clang-format off */
static const struct door_rule rules[] = {
    {ARG(a), IN,  DTYPE(I8),  DIMS(2, ROWS, TIMES(4, PACKED)), TO_PITCHED(a), PITCH_TO(lda)},
    {ARG(b), IN,  DTYPE(U8),  DIMS(2, PACKED, COLS),           LOWER(lower_weights, b)},
    {ARG(c), OUT, DTYPE(I32), DIMS(2, ROWS, COLS),             TO_PITCHED(c), PITCH_TO(ldc)},
    {WORKSPACE(unpacked_bytes, a, b), TO(workspace)},
};
#undef DOOR
/* clang-format on */

const struct door int2_matmul_door = DOOR_OF(int2_matmul, rules);

WORKSPACE_QUERY(int2_matmul)

liger_status liger_int2_matmul(liger_context *context, const liger_int2_matmul_args *given, liger_stream stream) {
    liger_int2_matmul_args args;
    struct int2_matmul_problem problem;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &int2_matmul_door, context, given, &args, &problem));
    problem.m = call.size[ROWS];
    problem.n = call.size[COLS];
    problem.packed = call.size[PACKED];
    if (problem.m == 0 || problem.n == 0) return LIGER_OK;
    return context->kernels->int2_matmul(context, &problem, stream);
}
