/* rope.c - the door of RoPE: what its functions take, and the problem that a kernel gets. Both directions are one map. */
#include "liger/ops/rope/rope.h"

#include "liger/core/check.h"
#include "liger/core/door_rules.h"
#include "liger/ops/rope/rope_problem.h"

enum { BATCH = 1, Q_HEADS, SEQ, DIM };

/* A dimension of one element has no stride to speak of, whatever number the caller has there. */
static int64_t stride_of(const liger_tensor *tensor, int d) { return tensor->shape[d] > 1 ? tensor->stride[d] : 0; }

static liger_status lower_heads(const liger_tensor *tensor, const char *what, void *to) {
    LIGER_TRY(liger_check_last_contiguous(tensor, what));
    *(struct rope_heads *)to = (struct rope_heads){
        .data = tensor->data,
        .batch_stride = stride_of(tensor, 0),
        .head_stride = stride_of(tensor, 1),
        .seq_stride = stride_of(tensor, 2),
    };
    return LIGER_OK;
}

/* ---- cos and sin ------------------------------------------------------------------------------------------------ */

/* The two structs are the same field by field, and only their names differ: what follows takes either. */
typedef liger_rope_forward_args common_args;
_Static_assert(sizeof(common_args) == sizeof(liger_rope_backward_args), "the same fields");
_Static_assert(offsetof(common_args, rotary) == offsetof(liger_rope_backward_args, rotary), "the same fields");

enum { PLANES = 3 };

static bool has_sections(const common_args *args) { return args->temporal > 0 || args->height > 0 || args->width > 0; }

/* How many dimensions, and of how many planes. */
static liger_status check_planes(const common_args *args, const liger_tensor *table, const char *what) {
    if (!has_sections(args)) {
        LIGER_REQUIRE(table->ndim == 2 || table->ndim == 3, LIGER_ERR_SHAPE,
                      "%s has %d dimensions, but must have 2 (sequence, angles) or 3 (batch, sequence, angles)", what,
                      table->ndim);
        return LIGER_OK;
    }
    LIGER_REQUIRE(table->ndim == 4, LIGER_ERR_SHAPE,
                  "%s has %d dimensions, but with sections must have 4 (section, batch, sequence, angles)", what,
                  table->ndim);
    LIGER_REQUIRE(table->shape[0] == PLANES, LIGER_ERR_SHAPE,
                  "%s: shape[0] is %lld, but must be %d, a plane for each section", what, (long long)table->shape[0],
                  PLANES);
    return LIGER_OK;
}

static liger_status fits_table(const struct door_call *call, const liger_tensor *table, const char *what) {
    LIGER_TRY(check_planes(call->args, table, what));
    const int seq = table->ndim - 2, batch = seq - 1;
    LIGER_REQUIRE(batch < 0 || table->shape[batch] == 1 || table->shape[batch] == call->size[BATCH], LIGER_ERR_SHAPE,
                  "%s: shape[%d] is %lld, but must be 1 or the batch of %lld", what, batch,
                  (long long)table->shape[batch], (long long)call->size[BATCH]);
    LIGER_REQUIRE(table->shape[seq] == call->size[SEQ], LIGER_ERR_SHAPE,
                  "%s: shape[%d] is %lld, but must be the sequence length %lld", what, seq,
                  (long long)table->shape[seq], (long long)call->size[SEQ]);
    return LIGER_OK;
}

static liger_status check_width(const struct door_call *call, const char *name, const liger_tensor *table) {
    const int64_t half = ((const common_args *)call->args)->rotary / 2;
    const int last = table->ndim - 1;
    LIGER_REQUIRE(table->shape[last] >= half, LIGER_ERR_SHAPE,
                  "%s: %s: shape[%d] is %lld, but must be rotary/2 = %lld or more", call->door->function, name, last,
                  (long long)table->shape[last], (long long)half);
    return LIGER_OK;
}

static liger_status check_rotary(struct door_call *call) {
    const common_args *args = call->args;
    const int64_t dim = call->size[DIM];
    LIGER_REQUIRE(args->rotary >= 0 && args->rotary <= dim && args->rotary % 2 == 0, LIGER_ERR_ARGUMENT,
                  "%s: rotary is %lld, but must be even and in [0, %lld]", call->door->function,
                  (long long)args->rotary, (long long)dim);
    LIGER_TRY(check_width(call, "cos", &args->cos));
    return check_width(call, "sin", &args->sin);
}

static liger_status check_sections(struct door_call *call) {
    const common_args *args = call->args;
    const int64_t half = args->rotary / 2;
    const bool fit = args->temporal <= half && args->height <= half && args->width <= half &&
                     args->temporal + args->height + args->width == half;
    LIGER_REQUIRE(fit || !has_sections(args), LIGER_ERR_ARGUMENT,
                  "%s: temporal, height and width are %lld, %lld and %lld, but must add up to rotary/2 = %lld",
                  call->door->function, (long long)args->temporal, (long long)args->height, (long long)args->width,
                  (long long)half);
    return LIGER_OK;
}

/* ---- the tables of the doors ------------------------------------------------------------------------------------ */

#define HEADS DIMS_OF("batch, heads, sequence, head size", 4, BATCH, Q_HEADS, SEQ, DIM)

/* clang-format off */
#define DOOR rope_forward, rope_problem
static const struct door_rule forward_rules[] = {
    {ARG(q),     IN,  FLOAT_T,       HEADS,             LOWER(lower_heads, q)},
    {ARG(k),     IN,  T,             LIKE_BUT(q, 1),    LOWER(lower_heads, k), ONLY_WITH(k_out)},
    {ARG(cos),   IN,  T_OR_F32,      SHAPE(fits_table), TO_LAST(cos), DTYPE_TO(table_dtype)},
    {ARG(sin),   IN,  DTYPE_OF(cos), SHAPE(fits_table), TO_LAST(sin)},
    {ARG(q_out), OUT, T,             LIKE(q),           LOWER(lower_heads, q_out), MAY_BE(q)},
    {ARG(k_out), OUT, T,             LIKE(k),           LOWER(lower_heads, k_out), MAY_BE(k), ONLY_WITH(k)},
    {INT64(rotary)},
    {CHECK(check_rotary)},
    {INT32(operand_dtype), NONE_OR_FLOAT},
    {RESERVED(reserved)},
    {INT64(temporal), AT_LEAST(0)},
    {INT64(height), AT_LEAST(0)},
    {INT64(width), AT_LEAST(0)},
    {CHECK(check_sections)},
};
#undef DOOR

#define DOOR rope_backward, rope_problem
static const struct door_rule backward_rules[] = {
    {ARG(dq),     IN,  FLOAT_T,       HEADS,             LOWER(lower_heads, q)},
    {ARG(dk),     IN,  T,             LIKE_BUT(dq, 1),   LOWER(lower_heads, k), ONLY_WITH(dk_out)},
    {ARG(cos),    IN,  T_OR_F32,      SHAPE(fits_table), TO_LAST(cos), DTYPE_TO(table_dtype)},
    {ARG(sin),    IN,  DTYPE_OF(cos), SHAPE(fits_table), TO_LAST(sin)},
    {ARG(dq_out), OUT, T,             LIKE(dq),          LOWER(lower_heads, q_out), MAY_BE(dq)},
    {ARG(dk_out), OUT, T,             LIKE(dk),          LOWER(lower_heads, k_out), MAY_BE(dk), ONLY_WITH(dk)},
    {INT64(rotary)},
    {CHECK(check_rotary)},
    {INT32(operand_dtype), NONE_OR_FLOAT},
    {RESERVED(reserved)},
    {INT64(temporal), AT_LEAST(0)},
    {INT64(height), AT_LEAST(0)},
    {INT64(width), AT_LEAST(0)},
    {CHECK(check_sections)},
};
#undef DOOR
/* clang-format on */

const struct door rope_forward_door = DOOR_OF(rope_forward, forward_rules);
const struct door rope_backward_door = DOOR_OF(rope_backward, backward_rules);

static bool is_empty(const struct rope_problem *p) {
    return p->batch == 0 || p->seq == 0 || p->dim == 0 || p->q_heads + p->k_heads == 0;
}

/* The strides of a table's planes, of its batches and of its rows. */
static void lower_table(const liger_tensor *table, int64_t *plane, int64_t *batch, int64_t *seq) {
    const int rows = table->ndim - 2;
    *seq = stride_of(table, rows);
    *batch = rows > 0 ? stride_of(table, rows - 1) : 0;
    *plane = rows > 1 ? stride_of(table, rows - 2) : 0;
}

static void lower_sections(const common_args *args, struct rope_problem *problem) {
    problem->planes = has_sections(args) ? PLANES : 1;
    problem->first[1] = has_sections(args) ? args->temporal : problem->half;
    problem->first[2] = problem->first[1] + args->height;
    problem->first[3] = problem->half;
}

/* What the rules do not fill in. */
static void finish(const struct door_call *call, struct rope_problem *problem) {
    const common_args *args = call->args;
    const bool rounds = args->operand_dtype != LIGER_DTYPE_NONE && args->operand_dtype != (int32_t)call->t;
    problem->dtype = call->t;
    problem->operand_dtype = rounds ? (liger_dtype)args->operand_dtype : LIGER_F32;
    problem->batch = call->size[BATCH];
    problem->q_heads = call->size[Q_HEADS];
    problem->k_heads = args->k.data ? args->k.shape[1] : 0;
    problem->seq = call->size[SEQ];
    problem->dim = call->size[DIM];
    problem->half = args->rotary / 2;
    lower_table(&args->cos, &problem->cos_plane_stride, &problem->cos_batch_stride, &problem->cos_seq_stride);
    lower_table(&args->sin, &problem->sin_plane_stride, &problem->sin_batch_stride, &problem->sin_seq_stride);
    lower_sections(args, problem);
}

liger_status liger_rope_forward(liger_context *context, const liger_rope_forward_args *given, liger_stream stream) {
    common_args args;
    struct rope_forward_problem problem = {.rope = {.inverse = false}};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &rope_forward_door, context, given, &args, &problem.rope));
    finish(&call, &problem.rope);
    if (is_empty(&problem.rope)) return LIGER_OK;
    return context->kernels->rope_forward(context, &problem, stream);
}

liger_status liger_rope_backward(liger_context *context, const liger_rope_backward_args *given, liger_stream stream) {
    common_args args;
    struct rope_backward_problem problem = {.rope = {.inverse = true}};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &rope_backward_door, context, given, &args, &problem.rope));
    finish(&call, &problem.rope);
    if (is_empty(&problem.rope)) return LIGER_OK;
    return context->kernels->rope_backward(context, &problem, stream);
}
