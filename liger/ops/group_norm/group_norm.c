/* group_norm.c - the door of GroupNorm: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/group_norm/group_norm.h"

#include "liger/core/door_rules.h"
#include "liger/ops/group_norm/group_norm_problem.h"

enum { BATCH = 1, CHANNELS, SPATIAL, GROUPS, ROWS };

/* The sizes of x, [batch, channels, ...], and the groups that its channels fall into. */
static liger_status bind_sizes(struct door_call *call, const liger_tensor *x) {
    const char *function = call->door->function;
    const int64_t groups = call->size[GROUPS];
    int64_t spatial = 1;
    LIGER_REQUIRE(x->ndim >= 2, LIGER_ERR_SHAPE, "%s: x has %d dimensions, but must have 2 or more", function, x->ndim);
    for (int d = 2; d < x->ndim; d++) spatial *= x->shape[d];
    LIGER_REQUIRE(x->shape[1] > 0, LIGER_ERR_SHAPE, "%s: x has no channels, but must have 1 or more", function);
    LIGER_REQUIRE(x->shape[1] % groups == 0, LIGER_ERR_SHAPE,
                  "%s: x has %lld channels, which is no multiple of the %lld groups", function, (long long)x->shape[1],
                  (long long)groups);
    call->size[BATCH] = x->shape[0];
    call->size[CHANNELS] = x->shape[1];
    call->size[SPATIAL] = spatial;
    call->size[ROWS] = x->shape[0] * groups;
    call->bound |= 1u << BATCH | 1u << CHANNELS | 1u << SPATIAL | 1u << ROWS;
    return LIGER_OK;
}
static liger_status bind_forward(struct door_call *call) {
    return bind_sizes(call, &((const liger_group_norm_forward_args *)call->args)->x);
}
static liger_status bind_backward(struct door_call *call) {
    return bind_sizes(call, &((const liger_group_norm_backward_args *)call->args)->x);
}

/* Samples of nothing are no samples. */
static struct group_norm_shape shape_of(const struct door_call *call) {
    if (call->size[SPATIAL] == 0) return (struct group_norm_shape){0, call->size[CHANNELS], 1, call->size[GROUPS]};
    return (struct group_norm_shape){call->size[BATCH], call->size[CHANNELS], call->size[SPATIAL], call->size[GROUPS]};
}
static struct group_norm_cut cut_of(const struct door_call *call) {
    const struct group_norm_shape shape = shape_of(call);
    return group_norm_cut_of(call->context->multiprocessors, &shape, (int64_t)liger_dtype_size(call->t));
}

static size_t forward_bytes(const struct door_call *call) {
    const struct group_norm_shape shape = shape_of(call);
    const struct group_norm_cut cut = cut_of(call);
    return (size_t)group_norm_forward_floats(&shape, &cut) * sizeof(float);
}
static size_t backward_bytes(const struct door_call *call) {
    const struct group_norm_shape shape = shape_of(call);
    const struct group_norm_cut cut = cut_of(call);
    return (size_t)group_norm_backward_floats(&shape, &cut) * sizeof(float);
}

/* clang-format off */
#define DOOR group_norm_forward, group_norm_forward_problem
static const struct door_rule forward_rules[] = {
    {INT64(groups), AT_LEAST(1), BINDS(GROUPS)},
    {ARG(x),          IN,  FLOAT_T,          ANY_SHAPE,                   TO_POINTER(x)},
    {CHECK(bind_forward)},
    {ARG(weight),     IN,  T_OR_F32,         VECTOR(CHANNELS),            TO_POINTER(weight), DTYPE_TO(weight_dtype)},
    {ARG(bias),       IN,  DTYPE_OF(weight), VECTOR(CHANNELS),            TO_POINTER(bias)},
    {ARG(y),          OUT, T,                LIKE(x),                     TO_POINTER(y), MAY_BE(x)},
    {ARG(statistics), OUT, DTYPE(F32),       DIMS(2, EXACTLY(2), ROWS),   TO_POINTER(statistics), OPTIONAL},
    {FLOAT(epsilon), AT_LEAST(0), TO(epsilon)},
    {RESERVED(reserved)},
    {WORKSPACE(forward_bytes, x), TO(workspace)},
};
#undef DOOR

#define DOOR group_norm_backward, group_norm_backward_problem
static const struct door_rule backward_rules[] = {
    {INT64(groups), AT_LEAST(1), BINDS(GROUPS)},
    {ARG(x),          IN,  FLOAT_T,          ANY_SHAPE,                   TO_POINTER(x)},
    {CHECK(bind_backward)},
    {ARG(dy),         IN,  T,                LIKE(x),                     TO_POINTER(dy)},
    {ARG(weight),     IN,  T_OR_F32,         VECTOR(CHANNELS),            TO_POINTER(weight), DTYPE_TO(weight_dtype)},
    {ARG(statistics), IN,  DTYPE(F32),       DIMS(2, EXACTLY(2), ROWS),   TO_POINTER(statistics)},
    {ARG(dx),         OUT, T,                LIKE(x),                     TO_POINTER(dx), OPTIONAL, MAY_BE(dy, x)},
    {ARG(dweight),    OUT, DTYPE_OF(weight), VECTOR(CHANNELS),            TO_POINTER(dweight), OPTIONAL},
    {ARG(dbias),      OUT, DTYPE_OF(weight), VECTOR(CHANNELS),            TO_POINTER(dbias),   OPTIONAL},
    {WORKSPACE(backward_bytes, x), ONLY_WITH(dx, dweight, dbias), TO(workspace)},
};
#undef DOOR
/* clang-format on */

const struct door group_norm_forward_door = DOOR_OF(group_norm_forward, forward_rules);
const struct door group_norm_backward_door = DOOR_OF(group_norm_backward, backward_rules);

liger_status liger_group_norm_forward(liger_context *context, const liger_group_norm_forward_args *given,
                                      liger_stream stream) {
    liger_group_norm_forward_args args;
    struct group_norm_forward_problem problem = {.statistics = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &group_norm_forward_door, context, given, &args, &problem));
    problem.dtype = call.t;
    problem.shape = shape_of(&call);
    problem.cut = cut_of(&call);
    if (problem.shape.batch == 0) return LIGER_OK;
    return context->kernels->group_norm_forward(context, &problem, stream);
}

WORKSPACE_QUERY(group_norm_forward)

liger_status liger_group_norm_backward(liger_context *context, const liger_group_norm_backward_args *given,
                                       liger_stream stream) {
    liger_group_norm_backward_args args;
    struct group_norm_backward_problem problem = {.dx = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &group_norm_backward_door, context, given, &args, &problem));
    problem.dtype = call.t;
    problem.shape = shape_of(&call);
    problem.cut = cut_of(&call);
    const bool parameters = problem.dweight != NULL || problem.dbias != NULL;
    if (!parameters && (problem.dx == NULL || problem.shape.batch == 0)) return LIGER_OK;
    return context->kernels->group_norm_backward(context, &problem, stream);
}

WORKSPACE_QUERY(group_norm_backward)
