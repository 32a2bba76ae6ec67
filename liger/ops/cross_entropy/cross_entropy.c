/* cross_entropy.c - the door of cross entropy: what its functions take, then three slots: count, rows, reduce.
 *
 * Device-free: counts and row results live in the caller's workspace, so that nothing waits for the device. */
#include "liger/ops/cross_entropy/cross_entropy.h"

#include "liger/ops/cross_entropy/cross_entropy_loss_problem.h"

/* What the tables fill in. */
struct whole_problem {
    struct cross_entropy_loss_problem loss;
    const void *logits;
    void *dlogits; /* or NULL */
    int64_t logits_stride, dlogits_stride;
};

#define LOGITS DIMS(2, ROWS, SOME(VOCAB))

static size_t count_workspace(const struct door_call *call) {
    (void)call;
    return cross_entropy_loss_workspace(0, false, false, false);
}

#define DOOR cross_entropy_forward, whole_problem
static size_t forward_workspace(const struct door_call *call) {
    return cross_entropy_loss_workspace(call->size[ROWS], door_has(call, BIT(loss)), door_has(call, BIT(z_loss)),
                                        door_has(call, BIT(accuracy)));
}
/* clang-format off */
static const struct door_rule forward_rules[] = {
    {ARG(logits),  IN,  FLOAT_T, LOGITS,       TO_LAST(logits), PITCH_TO(logits_stride)},
    CROSS_ENTROPY_INPUTS(weight),
    CROSS_ENTROPY_OPTIONS,
    CROSS_ENTROPY_RESULTS,
    {ARG(dlogits), OUT, T,       LIKE(logits), TO_LAST(dlogits), PITCH_TO(dlogits_stride), OPTIONAL, MAY_BE(logits)},
    {WORKSPACE(forward_workspace, logits), TO(loss.workspace)},
};
#undef DOOR

#define DOOR cross_entropy_backward, whole_problem
static const struct door_rule backward_rules[] = {
    {ARG(logits),  IN,  FLOAT_T, LOGITS,       TO_LAST(logits), PITCH_TO(logits_stride)},
    CROSS_ENTROPY_INPUTS(weight),
    CROSS_ENTROPY_OPTIONS,
    {ARG(dlogits), OUT, T,       LIKE(logits), TO_LAST(dlogits), PITCH_TO(dlogits_stride), MAY_BE(logits)},
    {WORKSPACE(count_workspace, logits), TO(loss.workspace)},
};
#undef DOOR
/* clang-format on */

const struct door cross_entropy_forward_door = DOOR_OF(cross_entropy_forward, forward_rules);
const struct door cross_entropy_backward_door = DOOR_OF(cross_entropy_backward, backward_rules);

static liger_status run_rows(liger_context *context, const struct whole_problem *whole, liger_stream stream) {
    struct cross_entropy_rows_problem problem = cross_entropy_rows_of(&whole->loss);
    problem.logits = whole->logits;
    problem.logits_stride = whole->logits_stride;
    problem.dlogits = whole->dlogits;
    problem.dlogits_stride = whole->dlogits_stride;
    return context->kernels->cross_entropy_rows(context, &problem, stream);
}

static liger_status run(liger_context *context, struct whole_problem *whole, liger_stream stream) {
    whole->loss.counts = whole->loss.workspace;
    LIGER_TRY(cross_entropy_run_count(context, &whole->loss, stream));
    if (whole->loss.rows > 0) LIGER_TRY(run_rows(context, whole, stream));
    return cross_entropy_run_reduce(context, &whole->loss, stream);
}

liger_status liger_cross_entropy_forward(liger_context *context, const liger_cross_entropy_forward_args *given,
                                         liger_stream stream) {
    liger_cross_entropy_forward_args args;
    struct whole_problem whole = {.logits = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &cross_entropy_forward_door, context, given, &args, &whole));
    cross_entropy_finish(&call, &args.upstream, &whole.loss);
    return run(context, &whole, stream);
}

liger_status liger_cross_entropy_backward(liger_context *context, const liger_cross_entropy_backward_args *given,
                                          liger_stream stream) {
    liger_cross_entropy_backward_args args;
    struct whole_problem whole = {.logits = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &cross_entropy_backward_door, context, given, &args, &whole));
    cross_entropy_finish(&call, &args.upstream, &whole.loss);
    return run(context, &whole, stream);
}

WORKSPACE_QUERY(cross_entropy_forward)

WORKSPACE_QUERY(cross_entropy_backward)
