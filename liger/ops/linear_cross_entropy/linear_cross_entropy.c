/* linear_cross_entropy.c - a composite: the chunk loop of chunk/linear_loss.c with cross entropy as its head.
 *
 * It has no kernels of its own. Counts are taken over the whole batch first, so that a chunk's gradient is final when it
 * is made; the row results of all chunks are reduced once, at the end. */
#include "liger/ops/linear_cross_entropy/linear_cross_entropy.h"

#include "liger/chunk/linear_head.h"
#include "liger/chunk/linear_loss.h"
#include "liger/ops/cross_entropy/cross_entropy_loss_problem.h"

enum { HIDDEN = CROSS_ENTROPY_SIZES, CHUNK };

/* What the tables fill in. */
struct whole_problem {
    struct cross_entropy_loss_problem loss;
    struct linear_loss chunks;
    void *counts; /* or NULL */
    int32_t token_scaling, raw_gradient;
};

/* ---- what the functions take ------------------------------------------------------------------------------------ */

#define DOOR linear_cross_entropy_forward, whole_problem
_Static_assert(offsetof(liger_linear_cross_entropy_forward_args, logits) ==
                   offsetof(liger_linear_cross_entropy_backward_args, logits),
               "operands and logits stand at the same places in both structs");

/* A weight that some framework has not put together yet. Before the row of the weight, whose words know no shards. */
static liger_status check_weight(struct door_call *call) {
    const liger_tensor *weight = door_tensor(call->args, DOOR_AT(DOOR, weight));
    LIGER_REQUIRE(weight->ndim != 2 || (weight->shape[0] != 0 && weight->shape[1] != 0), LIGER_ERR_SHAPE,
                  "%s: weight is %lld x %lld, but no size may be 0 (is it a shard that was not gathered?)",
                  call->door->function, (long long)weight->shape[0], (long long)weight->shape[1]);
    return LIGER_OK;
}

/* No rows need no logits, and a question whose answer does not depend on them either. */
static liger_status check_logits(struct door_call *call) {
    const liger_tensor *logits = door_tensor(call->args, DOOR_AT(DOOR, logits));
    const bool matter = !call->query || (call->needs & BIT(logits)) != 0;
    if (!matter || call->size[ROWS] == 0) return LIGER_OK;
    LIGER_REQUIRE(door_has(call, BIT(logits)), LIGER_ERR_ARGUMENT, "%s: logits is required, but its %s",
                  call->door->function, call->query ? "dtype is NONE" : "data is NULL");
    LIGER_REQUIRE(call->size[CHUNK] > 0, LIGER_ERR_SHAPE,
                  "%s: logits must be [chunk, vocab] with 1 or more rows, but has %d dimensions and %lld rows",
                  call->door->function, logits->ndim, (long long)call->size[CHUNK]);
    return LIGER_OK;
}

/* The scratch of the chunk loop; what is there is a pointer for it that is not NULL. */
static size_t chunk_workspace(const struct door_call *call, bool dbias) {
    const struct linear_loss chunks = {
        .dtype = call->t,
        .rows = call->size[ROWS],
        .hidden = call->size[HIDDEN],
        .vocab = call->size[VOCAB],
        .chunk_rows = call->size[CHUNK],
        .bias = door_has(call, BIT(bias)) ? call : NULL,
        .dbias = dbias ? (float *)(void *)(uintptr_t)call : NULL,
    };
    return (linear_loss_workspace(call->context, &chunks) + 255) / 256 * 256;
}

static size_t forward_workspace(const struct door_call *call) {
    return cross_entropy_loss_workspace(call->size[ROWS], door_has(call, BIT(loss)), door_has(call, BIT(z_loss)),
                                        door_has(call, BIT(accuracy))) +
           chunk_workspace(call, door_has(call, BIT(dbias)));
}

/* clang-format off */
#define OPERANDS                                                                                                       \
    {ARG(x),      IN, FLOAT_T, DIMS(2, ROWS, HIDDEN), TO_PITCHED(chunks.x), PITCH_TO(chunks.x_stride)},                \
    {CHECK(check_weight)},                                                                                             \
    {ARG(weight), IN, T,       DIMS(2, VOCAB, HIDDEN)            , TO_POINTER(chunks.weight)},                         \
    {ARG(bias),   IN, T,       VECTOR(VOCAB), TO_POINTER(chunks.bias), OPTIONAL},                                      \
    CROSS_ENTROPY_INPUTS(class_weight),                                                                                \
    {ARG(logits), SCRATCH, T,  DIMS(2, CHUNK, VOCAB), TO_PITCHED(chunks.logits), PITCH_TO(chunks.logits_stride), OPTIONAL}, \
    {CHECK(check_logits)}
#define GRADIENTS                                                                                                      \
    {ARG(dx),      OUT, T,          LIKE(x),       TO_PITCHED(chunks.dx), PITCH_TO(chunks.dx_stride), OPTIONAL},       \
    {ARG(dweight), OUT, T_OR_F32,   LIKE(weight),  TO_POINTER(chunks.dweight), DTYPE_TO(chunks.dweight_dtype), OPTIONAL}, \
    {ARG(dbias),   OUT, DTYPE(F32), VECTOR(VOCAB), TO_POINTER(chunks.dbias), OPTIONAL}

static const struct door_rule forward_rules[] = {
    OPERANDS,
    CROSS_ENTROPY_OPTIONS,
    {INT32(token_scaling), BETWEEN(0, 1), TO(token_scaling)},
    {INT32(raw_gradient),  BETWEEN(0, 1), TO(raw_gradient)},
    CROSS_ENTROPY_RESULTS,
    {ARG(counts), OUT, DTYPE(F32), VECTOR(EXACTLY(4)), TO_POINTER(counts), OPTIONAL},
    GRADIENTS,
    {WORKSPACE(forward_workspace, x, weight, logits), TO(loss.workspace)},
};
#undef DOOR

#define DOOR linear_cross_entropy_backward, whole_problem
static size_t backward_workspace(const struct door_call *call) {
    return cross_entropy_loss_workspace(0, false, false, false) + chunk_workspace(call, door_has(call, BIT(dbias)));
}
static const struct door_rule backward_rules[] = {
    OPERANDS,
    CROSS_ENTROPY_OPTIONS,
    {INT32(token_scaling), BETWEEN(0, 1), TO(token_scaling)},
    {RESERVED(reserved)},
    GRADIENTS,
    {WORKSPACE(backward_workspace, x, weight, logits), TO(loss.workspace)},
};
#undef DOOR
/* clang-format on */

const struct door linear_cross_entropy_forward_door = DOOR_OF(linear_cross_entropy_forward, forward_rules);
const struct door linear_cross_entropy_backward_door = DOOR_OF(linear_cross_entropy_backward, backward_rules);

/* ---- the steps -------------------------------------------------------------------------------------------------- */

struct head_state {
    struct cross_entropy_rows_problem whole; /* row pointers of the whole batch; a chunk's are offset from them */
    bool gradient;
};

static liger_status head(liger_context *context, void *opaque, int64_t first, int64_t rows, void *logits,
                         int64_t stride, liger_stream stream) {
    const struct head_state *state = opaque;
    struct cross_entropy_rows_problem problem = state->whole;
    problem.rows = rows;
    problem.logits = logits;
    problem.logits_stride = problem.dlogits_stride = stride;
    problem.dlogits = state->gradient ? logits : NULL;
    problem.target = (const char *)problem.target + first * (int64_t)liger_dtype_size(problem.target_dtype);
    if (problem.upstream) problem.upstream += first * problem.upstream_stride;
    if (problem.loss) problem.loss += first;
    if (problem.z_loss) problem.z_loss += first;
    if (problem.accuracy) problem.accuracy += first;
    if (problem.predicted) problem.predicted += first;
    return context->kernels->cross_entropy_rows(context, &problem, stream);
}

static struct head_state head_of(const struct whole_problem *whole) {
    struct head_state state = {
        .whole = cross_entropy_rows_of(&whole->loss),
        .gradient = whole->chunks.dx || whole->chunks.dweight || whole->chunks.dbias,
    };
    state.whole.raw_gradient = whole->raw_gradient != 0;
    state.whole.token_scaling = whole->token_scaling != 0;
    return state;
}

/* The scratch of the chunk loop lies behind what the loss needs. */
static liger_status run_chunks(liger_context *context, const struct whole_problem *whole, size_t workspace_bytes,
                               liger_stream stream) {
    const struct cross_entropy_loss_problem *loss = &whole->loss;
    const size_t before = cross_entropy_loss_workspace(loss->rows, loss->loss, loss->z_loss, loss->accuracy);
    struct head_state state = head_of(whole);
    struct linear_loss chunks = whole->chunks;
    chunks.workspace = (char *)loss->workspace + before;
    chunks.workspace_bytes = workspace_bytes - before;
    chunks.head = head;
    chunks.head_state = &state;
    return linear_loss_run(context, &chunks, stream);
}

static liger_status run(liger_context *context, const struct door_call *call, const liger_tensor *upstream,
                        size_t workspace_bytes, struct whole_problem *whole, liger_stream stream) {
    struct cross_entropy_loss_problem *loss = &whole->loss;
    struct linear_loss *chunks = &whole->chunks;
    cross_entropy_finish(call, upstream, loss);
    loss->counts = whole->counts ? whole->counts : loss->workspace;
    chunks->dtype = call->t;
    chunks->rows = call->size[ROWS];
    chunks->hidden = call->size[HIDDEN];
    chunks->vocab = call->size[VOCAB];
    chunks->chunk_rows = call->size[CHUNK];
    if (chunks->rows > 0) LIGER_TRY(liger_gemm_ready(context)); /* before anything is written */
    LIGER_TRY(cross_entropy_run_count(context, loss, stream));
    if (chunks->rows > 0) LIGER_TRY(run_chunks(context, whole, workspace_bytes, stream));
    else { /* the gradients of the parameters are zero */
        LIGER_TRY(linear_zero(context, chunks->dweight, chunks->dweight_dtype, chunks->vocab * chunks->hidden, stream));
        LIGER_TRY(linear_zero(context, chunks->dbias, LIGER_F32, chunks->vocab, stream));
    }
    return cross_entropy_run_reduce(context, loss, stream);
}

/* ---- the doors -------------------------------------------------------------------------------------------------- */

liger_status liger_linear_cross_entropy_forward(liger_context *context,
                                                const liger_linear_cross_entropy_forward_args *given,
                                                liger_stream stream) {
    liger_linear_cross_entropy_forward_args args;
    struct whole_problem whole = {.counts = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &linear_cross_entropy_forward_door, context, given, &args, &whole));
    return run(context, &call, &args.upstream, args.workspace_bytes, &whole, stream);
}

liger_status liger_linear_cross_entropy_backward(liger_context *context,
                                                 const liger_linear_cross_entropy_backward_args *given,
                                                 liger_stream stream) {
    liger_linear_cross_entropy_backward_args args;
    struct whole_problem whole = {.counts = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &linear_cross_entropy_backward_door, context, given, &args, &whole));
    return run(context, &call, &args.upstream, args.workspace_bytes, &whole, stream);
}

WORKSPACE_QUERY(linear_cross_entropy_forward)

WORKSPACE_QUERY(linear_cross_entropy_backward)

#define DOOR linear_cross_entropy_forward, whole_problem
liger_status liger_linear_cross_entropy_forward_chunk_rows(liger_context *context,
                                                           const liger_linear_cross_entropy_forward_args *given,
                                                           size_t *rows) {
    liger_linear_cross_entropy_forward_args args;
    const struct door *door = &linear_cross_entropy_forward_door;
    struct door_call call;
    LIGER_REQUIRE(context != NULL && rows != NULL, LIGER_ERR_ARGUMENT, "%s_chunk_rows: context or rows is NULL",
                  door->function);
    LIGER_TRY(door_query(&call, door, context, given, &args, BITS(x, weight)));
    *rows = (size_t)linear_loss_chunk_rows(context, call.t, call.size[ROWS], call.size[HIDDEN], call.size[VOCAB], true);
    return LIGER_OK;
}
