/* linear_cross_entropy.c - a composite: the chunk loop of chunk/linear_loss.c with cross entropy as its step; where the buffer
 * for logits says so, that loop for the losses and then the loop over slices of chunk/linear_slices.c for the gradients.
 *
 * It has no kernels of its own. Counts are taken over the whole batch first, so that a chunk's gradient is final when it
 * is made; the row results of all chunks are reduced once, at the end. */
#include "liger/ops/linear_cross_entropy/linear_cross_entropy.h"

#include "liger/chunk/linear_door.h"
#include "liger/chunk/linear_loss.h"
#include "liger/chunk/linear_slices.h"
#include "liger/ops/cross_entropy/cross_entropy_loss_problem.h"

enum { HIDDEN = CROSS_ENTROPY_SIZES, CHUNK, SLICE };
static const struct linear_sizes sizes = {ROWS, HIDDEN, VOCAB, CHUNK};

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

/* Logits of all rows, but not of the whole vocabulary. */
static bool two_passes(const struct door_call *call) {
    return call->size[ROWS] > 0 && call->size[SLICE] < call->size[VOCAB];
}

/* No rows need no logits, and a question whose answer does not depend on them either. */
static liger_status check_logits(struct door_call *call) {
    const liger_tensor *logits = door_tensor(call->args, DOOR_AT(DOOR, logits));
    if (!linear_chunk_matters(call)) return LIGER_OK;
    LIGER_TRY(linear_check_chunk_or_dweight(call));
    const int64_t rows = call->size[ROWS], vocab = call->size[VOCAB];
    const int64_t chunk = call->size[CHUNK], slice = call->size[SLICE];
    LIGER_REQUIRE(slice <= vocab, LIGER_ERR_SHAPE, "%s: logits has %lld columns, but the vocabulary is %lld",
                  call->door->function, (long long)slice, (long long)vocab);
    if (!two_passes(call)) return LIGER_OK;
    LIGER_REQUIRE(
        chunk == rows && slice > 0 && slice >= (vocab + rows - 1) / rows, LIGER_ERR_SHAPE,
        "%s: logits is %lld x %lld, but must have the %lld columns of the vocabulary, or the %lld rows of x and "
        "%lld columns or more",
        call->door->function, (long long)chunk, (long long)slice, (long long)vocab, (long long)rows,
        (long long)((vocab + rows - 1) / rows));
    LIGER_REQUIRE(call->query || rows == 1 || logits->stride[0] == slice, LIGER_ERR_LAYOUT,
                  "%s: logits: rows of a slice must follow each other, but their stride is %lld and not %lld",
                  call->door->function, (long long)logits->stride[0], (long long)slice);
    return LIGER_OK;
}

/* ---- the loops --------------------------------------------------------------------------------------------------- */

/* The loop over slices, which makes the gradients of two passes, */
static struct linear_slices slices_of(const struct door_call *call, const struct linear_loss *chunks) {
    return (struct linear_slices){
        .head = chunks->head,
        .rows = chunks->rows,
        .slice_cols = call->size[SLICE],
        .dx = chunks->dx,
        .dx_dtype = call->t,
        .dx_stride = chunks->dx_stride,
        .dx_rows = chunks->rows,
        .dweight = chunks->dweight,
        .dweight_dtype = chunks->dweight_dtype,
        .dbias = chunks->dbias,
    };
}

/* and the loop before it, which makes none. */
static struct linear_loss statistics_of(const struct door_call *call, const struct linear_loss *chunks) {
    struct linear_loss loop = *chunks;
    loop.dx = loop.dweight = loop.dbias = NULL;
    linear_loss_share(call->context, &loop, call->size[CHUNK] * call->size[SLICE]);
    return loop;
}

static size_t gradient_rows_bytes(const struct door_call *call) {
    return two_passes(call) ? door_padded((size_t)call->size[ROWS] * sizeof(struct logits_gradient_row)) : 0;
}

/* The scratch of the loops; what is there is a pointer for it that is not NULL. */
static size_t loop_workspace(const struct door_call *call, bool dx, bool dbias) {
    void *there = (void *)(uintptr_t)call;
    struct linear_loss chunks = {
        .head = {.bias = door_has(call, BIT(bias)) ? there : NULL},
        .dx = dx ? there : NULL,
        .dbias = dbias ? there : NULL,
    };
    linear_loss_sized(call, sizes, &chunks);
    if (!two_passes(call)) return door_padded(linear_loss_workspace(call->context, &chunks));
    const struct linear_loss first = statistics_of(call, &chunks);
    const struct linear_slices second = slices_of(call, &chunks);
    const size_t a = linear_loss_workspace(call->context, &first), b = linear_slices_workspace(call->context, &second);
    return gradient_rows_bytes(call) + door_padded(a > b ? a : b);
}

static size_t forward_workspace(const struct door_call *call) {
    return cross_entropy_loss_workspace(call->size[ROWS], door_has(call, BIT(loss)), door_has(call, BIT(z_loss)),
                                        door_has(call, BIT(accuracy))) +
           loop_workspace(call, door_has(call, BIT(dx)), door_has(call, BIT(dbias)));
}

/* clang-format off */
#define OPERANDS                                                                                                       \
    {ARG(x),      IN, FLOAT_T, DIMS(2, ROWS, HIDDEN), TO_PITCHED(chunks.head.x), PITCH_TO(chunks.head.x_stride)},      \
    {CHECK(linear_check_weight)},                                                                                      \
    {ARG(weight), IN, T,       DIMS(2, VOCAB, HIDDEN), TO_POINTER(chunks.head.weight)},                                \
    {ARG(bias),   IN, T,       VECTOR(VOCAB), TO_POINTER(chunks.head.bias), OPTIONAL},                                 \
    CROSS_ENTROPY_INPUTS(class_weight),                                                                                \
    {ARG(logits), SCRATCH, T,  DIMS(2, CHUNK, SLICE), TO_PITCHED(chunks.head.logits), PITCH_TO(chunks.head.logits_stride), OPTIONAL}, \
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
    return cross_entropy_loss_workspace(0, false, false, false) +
           loop_workspace(call, door_has(call, BIT(dx)), door_has(call, BIT(dbias)));
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

struct step_state {
    struct cross_entropy_rows_problem whole; /* row pointers of the whole batch; a chunk's are offset from them */
    bool in_place;                           /* logits become their gradient */
};

static liger_status step(liger_context *context, void *opaque, int64_t first, int64_t rows, void *logits,
                         int64_t stride, liger_stream stream) {
    const struct step_state *state = opaque;
    struct cross_entropy_rows_problem problem = state->whole;
    problem.rows = rows;
    problem.logits = logits;
    problem.logits_stride = problem.dlogits_stride = stride;
    problem.dlogits = state->in_place ? logits : NULL;
    problem.target = (const char *)problem.target + first * (int64_t)liger_dtype_size(problem.target_dtype);
    if (problem.upstream) problem.upstream += first * problem.upstream_stride;
    if (problem.loss) problem.loss += first;
    if (problem.z_loss) problem.z_loss += first;
    if (problem.accuracy) problem.accuracy += first;
    if (problem.predicted) problem.predicted += first;
    if (problem.gradient) problem.gradient += first;
    return context->kernels->cross_entropy_rows(context, &problem, stream);
}

static struct step_state state_of(const struct whole_problem *whole) {
    struct step_state state = {.whole = cross_entropy_rows_of(&whole->loss)};
    state.whole.raw_gradient = whole->raw_gradient != 0;
    state.whole.token_scaling = whole->token_scaling != 0;
    return state;
}

static liger_status run_slices(liger_context *context, const struct door_call *call, const struct whole_problem *whole,
                               const struct logits_gradient_row *rows, liger_stream stream) {
    const struct cross_entropy_loss_problem *loss = &whole->loss;
    struct logits_gradient_problem problem = {
        .dtype = loss->dtype,
        .rows = loss->rows,
        .vocab = loss->vocab,
        .map = {.scale = 1, .softcap = loss->softcap, .temperature = 1},
        .weights = rows,
        .class_weight = loss->label_smoothing > 0 ? loss->weight : NULL,
    };
    struct linear_slices slices = slices_of(call, &whole->chunks);
    slices.gradient = linear_slices_from_rows;
    slices.state = &problem;
    return linear_slices_run(context, &slices, stream);
}

/* The scratch of the loops lies behind what the loss needs; first the rows from which the second makes the gradient. */
static liger_status run_loops(liger_context *context, const struct door_call *call, struct whole_problem *whole,
                              liger_stream stream) {
    const struct cross_entropy_loss_problem *loss = &whole->loss;
    const size_t before = cross_entropy_loss_workspace(loss->rows, loss->loss, loss->z_loss, loss->accuracy);
    const bool gradients = whole->chunks.dx || whole->chunks.dweight || whole->chunks.dbias;
    struct logits_gradient_row *rows = (struct logits_gradient_row *)((char *)loss->workspace + before);
    struct step_state state = state_of(whole);
    whole->chunks.head.workspace = (char *)rows + gradient_rows_bytes(call);
    whole->chunks.step = step;
    whole->chunks.state = &state;
    state.in_place = gradients && !two_passes(call);
    if (!two_passes(call)) return linear_loss_run(context, &whole->chunks, stream);
    const struct linear_loss statistics = statistics_of(call, &whole->chunks);
    state.whole.gradient = gradients ? rows : NULL;
    LIGER_TRY(linear_loss_run(context, &statistics, stream));
    return gradients ? run_slices(context, call, whole, rows, stream) : LIGER_OK;
}

static liger_status run(liger_context *context, const struct door_call *call, const liger_tensor *upstream,
                        struct whole_problem *whole, liger_stream stream) {
    struct cross_entropy_loss_problem *loss = &whole->loss;
    struct linear_loss *chunks = &whole->chunks;
    cross_entropy_finish(call, upstream, loss);
    loss->counts = whole->counts ? whole->counts : loss->workspace;
    linear_loss_sized(call, sizes, chunks);
    if (chunks->rows > 0) LIGER_TRY(liger_gemm_ready(context)); /* before anything is written */
    LIGER_TRY(cross_entropy_run_count(context, loss, stream));
    if (chunks->rows > 0) LIGER_TRY(run_loops(context, call, whole, stream));
    else { /* the gradients of the parameters are zero */ const int64_t vocab = chunks->head.vocab;
        LIGER_TRY(linear_zero(context, chunks->dweight, chunks->dweight_dtype, vocab * chunks->head.hidden, stream));
        LIGER_TRY(linear_zero(context, chunks->dbias, LIGER_F32, vocab, stream));
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
    return run(context, &call, &args.upstream, &whole, stream);
}

liger_status liger_linear_cross_entropy_backward(liger_context *context,
                                                 const liger_linear_cross_entropy_backward_args *given,
                                                 liger_stream stream) {
    liger_linear_cross_entropy_backward_args args;
    struct whole_problem whole = {.counts = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &linear_cross_entropy_backward_door, context, given, &args, &whole));
    return run(context, &call, &args.upstream, &whole, stream);
}

WORKSPACE_QUERY(linear_cross_entropy_forward)

WORKSPACE_QUERY(linear_cross_entropy_backward)

#define DOOR linear_cross_entropy_forward, whole_problem
liger_status liger_linear_cross_entropy_forward_chunk_rows(liger_context *context,
                                                           const liger_linear_cross_entropy_forward_args *given,
                                                           size_t *rows) {
    liger_linear_cross_entropy_forward_args args;
    return linear_advise_chunk(context, &linear_cross_entropy_forward_door, given, &args, BITS(x, weight), BIT(dweight),
                               true, sizes, rows);
}

liger_status liger_linear_cross_entropy_forward_slice_cols(liger_context *context,
                                                           const liger_linear_cross_entropy_forward_args *given,
                                                           size_t *cols) {
    liger_linear_cross_entropy_forward_args args;
    struct door_call call;
    LIGER_TRY(linear_ask(&call, context, &linear_cross_entropy_forward_door, given, &args, BITS(x, weight), cols));
    *cols = (size_t)linear_loss_slice_cols(context, call.t, call.size[ROWS], call.size[HIDDEN], call.size[VOCAB],
                                           door_has(&call, BIT(dx)));
    return LIGER_OK;
}
