/* multi_token_attention.c - the door of multi-token attention: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/multi_token_attention/multi_token_attention.h"

#include "liger/core/door_rules.h"
#include "liger/ops/multi_token_attention/multi_token_attention_problem.h"

enum {
    BATCH = 1,
    IN_CHANNELS,
    OUT_CHANNELS,
    OF_GROUP,
    SIZE,
    KH,
    KW,
    STRIDE,
    PADDING = STRIDE + 2,
    DILATION = PADDING + 2,
    GROUPS = DILATION + 2,
    SPARSE
};

static liger_status bind_group(struct door_call *call) {
    LIGER_REQUIRE(call->size[IN_CHANNELS] % call->size[GROUPS] == 0, LIGER_ERR_SHAPE,
                  "%s: scores has %lld channels, which is no multiple of the %lld groups", call->door->function,
                  (long long)call->size[IN_CHANNELS], (long long)call->size[GROUPS]);
    LIGER_REQUIRE(!call->size[SPARSE] || call->t == LIGER_F32, LIGER_ERR_DTYPE,
                  "%s: scores is %s, but a sparse form must have f32", call->door->function, liger_dtype_name(call->t));
    call->size[OF_GROUP] = call->size[IN_CHANNELS] / call->size[GROUPS];
    call->bound |= 1u << OF_GROUP;
    return LIGER_OK;
}

/* The result of a convolution over `dimension` is as large as what goes in. */
static liger_status keeps_size(const struct door_call *call, int dimension) {
    const int64_t size = call->size[SIZE], stride = call->size[STRIDE + dimension];
    const int64_t padding = call->size[PADDING + dimension], dilation = call->size[DILATION + dimension];
    const int64_t kernel = call->size[KH + dimension] - 1;
    const bool known = padding <= INT64_MAX / 4 && size <= INT64_MAX / 4;
    const int64_t padded = known ? size + 2 * padding : 0;
    const bool fits = known && kernel <= (padded - 1) / dilation;
    const int64_t found = fits ? (padded - dilation * kernel - 1) / stride + 1 : 0;
    LIGER_REQUIRE(
        found == size, LIGER_ERR_SHAPE,
        "%s: weight, stride %lld, padding %lld and dilation %lld make %lld %s of %lld, but the result must be "
        "as large as scores",
        call->door->function, (long long)stride, (long long)padding, (long long)dilation, (long long)found,
        dimension ? "columns" : "rows", (long long)size);
    return LIGER_OK;
}

static liger_status check_window(struct door_call *call) {
    LIGER_REQUIRE(call->size[OUT_CHANNELS] % call->size[GROUPS] == 0, LIGER_ERR_SHAPE,
                  "%s: weight has %lld channels, which is no multiple of the %lld groups", call->door->function,
                  (long long)call->size[OUT_CHANNELS], (long long)call->size[GROUPS]);
    if (call->size[SIZE] == 0) return LIGER_OK;
    LIGER_TRY(keeps_size(call, 0));
    return keeps_size(call, 1);
}

static struct mta_shape shape_of(const struct door_call *call) {
    const int64_t *size = call->size;
    struct mta_shape shape = {.batch = size[BATCH],
                              .in = size[IN_CHANNELS],
                              .out = size[OUT_CHANNELS],
                              .size = size[SIZE],
                              .groups = size[GROUPS],
                              .kernel = {size[KH], size[KW]},
                              .stride = {size[STRIDE], size[STRIDE + 1]},
                              .padding = {size[PADDING], size[PADDING + 1]},
                              .dilation = {size[DILATION], size[DILATION + 1]},
                              .sparse = size[SPARSE] != 0};
    shape.chunks = mta_chunks(call->context->multiprocessors, &shape);
    return shape;
}

static size_t workspace_bytes(const struct door_call *call) {
    const struct mta_shape shape = shape_of(call);
    return (size_t)(shape.chunks * (mta_taps(&shape) + shape.out)) * sizeof(float);
}

/* clang-format off */
#define OPTIONS                                        \
    {INT64(stride_h),   AT_LEAST(1), BINDS(STRIDE)},       \
    {INT64(stride_w),   AT_LEAST(1), BINDS(STRIDE + 1)},   \
    {INT64(padding_h),  AT_LEAST(0), BINDS(PADDING)},      \
    {INT64(padding_w),  AT_LEAST(0), BINDS(PADDING + 1)},  \
    {INT64(dilation_h), AT_LEAST(1), BINDS(DILATION)},     \
    {INT64(dilation_w), AT_LEAST(1), BINDS(DILATION + 1)}, \
    {INT64(groups),     AT_LEAST(1), BINDS(GROUPS)},       \
    {INT32(sparse),     BETWEEN(0, 1), BINDS(SPARSE)},     \
    {RESERVED(reserved)}
#define WEIGHT DIMS(4, SOME(OUT_CHANNELS), OF_GROUP, SOME(KH), SOME(KW))

#define DOOR multi_token_attention_forward, multi_token_attention_forward_problem
static const struct door_rule forward_rules[] = {
    OPTIONS,
    {ARG(scores),     IN,  FLOAT_T,          DIMS(4, BATCH, SOME(IN_CHANNELS), SIZE, SIZE),  TO_POINTER(scores)},
    {CHECK(bind_group)},
    {ARG(weight),     IN,  T_OR_F32,         WEIGHT,                                         TO_POINTER(weight), DTYPE_TO(weight_dtype)},
    {CHECK(check_window)},
    {ARG(bias),       IN,  DTYPE_OF(weight), VECTOR(OUT_CHANNELS),                           TO_POINTER(bias), OPTIONAL},
    {ARG(y),          OUT, T,                DIMS(4, BATCH, OUT_CHANNELS, SIZE, SIZE),       TO_POINTER(y)},
    {ARG(statistics), OUT, DTYPE(F32),       DIMS(4, BATCH, IN_CHANNELS, SIZE, EXACTLY(2)),  TO_POINTER(statistics)},
};
#undef DOOR

#define DOOR multi_token_attention_backward, multi_token_attention_backward_problem
static const struct door_rule backward_rules[] = {
    OPTIONS,
    {ARG(scores),     IN,  FLOAT_T,          DIMS(4, BATCH, SOME(IN_CHANNELS), SIZE, SIZE),  TO_POINTER(scores)},
    {CHECK(bind_group)},
    {ARG(weight),     IN,  T_OR_F32,         WEIGHT,                                         TO_POINTER(weight), DTYPE_TO(weight_dtype)},
    {CHECK(check_window)},
    {ARG(dy),         IN,  T,                DIMS(4, BATCH, OUT_CHANNELS, SIZE, SIZE),       TO_POINTER(dy)},
    {ARG(statistics), IN,  DTYPE(F32),       DIMS(4, BATCH, IN_CHANNELS, SIZE, EXACTLY(2)),  TO_POINTER(statistics)},
    {ARG(dscores),    OUT, T,                LIKE(scores),                                   TO_POINTER(dscores), OPTIONAL},
    {ARG(dweight),    OUT, DTYPE_OF(weight), LIKE(weight),                                   TO_POINTER(dweight), OPTIONAL},
    {ARG(dbias),      OUT, DTYPE_OF(weight), VECTOR(OUT_CHANNELS),                           TO_POINTER(dbias),   OPTIONAL},
    {WORKSPACE(workspace_bytes, scores, weight), ONLY_WITH(dweight, dbias), TO(workspace)},
};
#undef DOOR
/* clang-format on */

const struct door multi_token_attention_forward_door = DOOR_OF(multi_token_attention_forward, forward_rules);
const struct door multi_token_attention_backward_door = DOOR_OF(multi_token_attention_backward, backward_rules);

liger_status liger_multi_token_attention_forward(liger_context *context,
                                                 const liger_multi_token_attention_forward_args *given,
                                                 liger_stream stream) {
    liger_multi_token_attention_forward_args args;
    struct multi_token_attention_forward_problem problem = {.bias = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &multi_token_attention_forward_door, context, given, &args, &problem));
    problem.dtype = call.t;
    problem.shape = shape_of(&call);
    if (problem.shape.batch == 0 || problem.shape.size == 0) return LIGER_OK;
    return context->kernels->multi_token_attention_forward(context, &problem, stream);
}

liger_status liger_multi_token_attention_backward(liger_context *context,
                                                  const liger_multi_token_attention_backward_args *given,
                                                  liger_stream stream) {
    liger_multi_token_attention_backward_args args;
    struct multi_token_attention_backward_problem problem = {.dscores = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &multi_token_attention_backward_door, context, given, &args, &problem));
    problem.dtype = call.t;
    problem.shape = shape_of(&call);
    if (problem.shape.batch == 0 || problem.shape.size == 0) problem.dscores = NULL;
    if (problem.dscores == NULL && problem.dweight == NULL && problem.dbias == NULL) return LIGER_OK;
    return context->kernels->multi_token_attention_backward(context, &problem, stream);
}

liger_status liger_multi_token_attention_backward_workspace(liger_context *context,
                                                            const liger_multi_token_attention_backward_args *given,
                                                            size_t *bytes) {
    liger_multi_token_attention_backward_args args;
    return door_workspace(&multi_token_attention_backward_door, context, given, &args, bytes);
}
