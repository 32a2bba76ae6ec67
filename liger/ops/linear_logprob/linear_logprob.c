/* linear_logprob.c - a composite: forward is the loop over chunks of rows with the statistics of logprob as its step, backward
 * the loop over slices of the vocabulary with the gradient of logprob. Before both, rows that are ignored may be left out.
 *
 * It has no kernels of its own. */
#include "liger/ops/linear_logprob/linear_logprob.h"

#include "liger/chunk/linear_in_place.h"
#include "liger/chunk/linear_loss.h"
#include "liger/chunk/linear_slices.h"
#include "liger/core/door_rules.h"
#include "liger/ops/logprob/logprob_problem.h"
#include "liger/ops/row_selection/row_selection_problem.h"

enum { ROWS = 1, HIDDEN, VOCAB, IDS, CHUNK, SLICE };

/* What the tables fill in. */
struct whole_problem {
    struct linear_loss forward;
    struct linear_slices backward;
    const void *target, *selected_ids;
    liger_dtype target_dtype, selected_dtype;
    int64_t ignore_index, valid_rows;
    struct logit_map map;
    struct logprob_results results;
    struct logprob_upstreams upstream;
    const float *log_prob, *normalizer, *entropy, *log_sum_sq_probs; /* backward's inputs */
    int32_t kept;
    void *workspace;
};

/* ---- scratch ---------------------------------------------------------------------------------------------------- */

static size_t padded(size_t bytes) { return (bytes + 255) / 256 * 256; }

/* The next piece of scratch; with `at` NULL, how much there was so far is all that matters. */
static void *take(char **at, size_t *total, size_t bytes) {
    void *piece = *at;
    if (*at) *at += padded(bytes);
    *total += padded(bytes);
    return piece;
}

/* Rows that are multiplied, at most. */
static int64_t most_rows(const struct door_call *call, int64_t valid_rows) {
    const int64_t rows = call->size[ROWS];
    return valid_rows >= 0 && valid_rows < rows ? valid_rows : rows;
}

struct scratch {
    /* The selection, where rows may be left out. */
    int64_t *row_of, *place_of, *count; /* count: the CPU's is the host's */
    void *x;
    /* Of backward. */
    int32_t *id_first, *id_next;
    struct logits_gradient_row *weights;
    void *loop;
    size_t bytes;
};

static bool selects(const struct door_call *call, int64_t valid_rows) {
    return call->context->device == LIGER_DEVICE_CPU || most_rows(call, valid_rows) < call->size[ROWS];
}

static struct scratch scratch_of(const struct door_call *call, int64_t valid_rows, void *workspace, bool backward,
                                 size_t loop_bytes) {
    const size_t most = (size_t)most_rows(call, valid_rows), rows = (size_t)call->size[ROWS];
    const size_t row_bytes = (size_t)call->size[HIDDEN] * liger_dtype_size(call->t);
    struct scratch s = {.row_of = NULL};
    char *at = workspace;
    if (selects(call, valid_rows)) {
        if (call->context->device != LIGER_DEVICE_CPU) s.count = take(&at, &s.bytes, sizeof(int64_t));
        s.row_of = take(&at, &s.bytes, most * sizeof(int64_t));
        s.place_of = take(&at, &s.bytes, rows * sizeof(int64_t));
        s.x = take(&at, &s.bytes, most * row_bytes);
    }
    if (backward) {
        const size_t ids = (size_t)call->size[IDS];
        s.weights = take(&at, &s.bytes, most * sizeof(struct logits_gradient_row));
        if (ids > 0) {
            s.id_first = take(&at, &s.bytes, (size_t)call->size[VOCAB] * sizeof(int32_t));
            s.id_next = take(&at, &s.bytes, ids * sizeof(int32_t));
        }
    }
    s.loop = take(&at, &s.bytes, loop_bytes);
    return s;
}

/* ---- what the functions take ------------------------------------------------------------------------------------ */

/* clang-format off */
#define OPERANDS(loop)                                                                                                 \
    {ARG(x),      IN, FLOAT_T, DIMS(2, ROWS, SOME(HIDDEN)), TO_PITCHED(loop.head.x), PITCH_TO(loop.head.x_stride)},    \
    {ARG(weight), IN, T,       DIMS(2, SOME(VOCAB), HIDDEN), TO_POINTER(loop.head.weight)},                            \
    {ARG(bias),   IN, T,       VECTOR(VOCAB), TO_POINTER(loop.head.bias), OPTIONAL},                                   \
    {ARG(target), IN, INDEX,   VECTOR(ROWS),  TO_POINTER(target), DTYPE_TO(target_dtype)}
#define OPTIONS                                                                                                        \
    {INT64(ignore_index), TO(ignore_index)},                                                                           \
    {INT64(valid_rows),   AT_LEAST(-1), TO(valid_rows)},                                                               \
    {FLOAT(scale),        FINITE,       TO(map.scale)},                                                                \
    {FLOAT(softcap),      CAP,          TO(map.softcap)},                                                              \
    {FLOAT(temperature),  POSITIVE,     TO(map.temperature)}
#define RESULT(field) {ARG(field), OUT, DTYPE(F32), VECTOR(ROWS), TO_POINTER(results.field), OPTIONAL}
#define UPSTREAM(field) {ARG(d_##field), IN, DTYPE(F32), VECTOR(ROWS), TO_POINTER(upstream.field), OPTIONAL}

static liger_status require_logits(const struct door_call *call, uint32_t logits) {
    LIGER_REQUIRE(door_has(call, logits), LIGER_ERR_ARGUMENT, "%s: logits is required, but its data is NULL",
                  call->door->function);
    return LIGER_OK;
}

#define DOOR linear_logprob_forward, whole_problem
#define ARGS(call) ((const liger_linear_logprob_forward_args *)(call)->args)

static liger_status check_logits(struct door_call *call) {
    if (call->query || most_rows(call, ARGS(call)->valid_rows) == 0) return LIGER_OK;
    LIGER_TRY(require_logits(call, BIT(logits)));
    LIGER_REQUIRE(call->size[CHUNK] > 0, LIGER_ERR_SHAPE,
                  "%s: logits must be [chunk, vocab] with 1 or more rows, but has 0", call->door->function);
    return LIGER_OK;
}

static size_t forward_loop(const struct door_call *call) {
    const struct linear_loss loop = {
        .head = {.dtype = call->t,
                 .hidden = call->size[HIDDEN],
                 .vocab = call->size[VOCAB],
                 .bias = door_has(call, BIT(bias)) ? call : NULL},
        .rows = most_rows(call, ARGS(call)->valid_rows),
        .chunk_rows = call->size[CHUNK],
    };
    return linear_loss_workspace(call->context, &loop);
}
static size_t forward_workspace(const struct door_call *call) {
    return scratch_of(call, ARGS(call)->valid_rows, NULL, false, forward_loop(call)).bytes;
}

static const struct door_rule forward_rules[] = {
    OPERANDS(forward),
    {ARG(selected_ids), IN, INDEX, VECTOR(IDS), TO_POINTER(selected_ids), DTYPE_TO(selected_dtype), ONLY_WITH(selected_log_probs)},
    OPTIONS,
    {ARG(logits), SCRATCH, T, DIMS(2, CHUNK, VOCAB), TO_PITCHED(forward.head.logits), PITCH_TO(forward.head.logits_stride), OPTIONAL},
    {CHECK(check_logits)},
    RESULT(log_prob), RESULT(entropy), RESULT(lse), RESULT(log_sum_sq_probs), RESULT(mean_logits),
    {ARG(is_top1), OUT, DTYPE(BOOL), VECTOR(ROWS), TO_POINTER(results.is_top1), OPTIONAL},
    {ARG(selected_log_probs), OUT, DTYPE(F32), DIMS(2, ROWS, IDS), TO_POINTER(results.selected), ONLY_WITH(selected_ids)},
    {ARG(normalizer), OUT, DTYPE(F32), DIMS(2, ROWS, EXACTLY(2)), TO_POINTER(results.normalizer), OPTIONAL},
    {INT32(keep), BETWEEN(0, 1)},
    {WORKSPACE(forward_workspace, x, weight, logits), TO(workspace)},
};
#undef ARGS
#undef DOOR

#define DOOR linear_logprob_backward, whole_problem
#define ARGS(call) ((const liger_linear_logprob_backward_args *)(call)->args)

/* Of logits_kept. */
enum { IN_DWEIGHT = 2 };

/* Where the logits that were kept are in dweight; else 0. */
static int64_t slices_in_place(const struct door_call *call) {
    const liger_tensor *dweight = &ARGS(call)->dweight;
    const bool is_there = call->query ? dweight->dtype != LIGER_DTYPE_NONE : dweight->data != NULL;
    if (ARGS(call)->logits_kept != IN_DWEIGHT || door_has(call, BIT(logits)) || !is_there) return 0;
    return linear_in_place_slices(call->context, call->t, most_rows(call, ARGS(call)->valid_rows), call->size[HIDDEN],
                                  call->size[VOCAB]);
}

static liger_status check_slice(struct door_call *call) {
    const int64_t most = most_rows(call, ARGS(call)->valid_rows), vocab = call->size[VOCAB];
    if (call->query || most == 0 || slices_in_place(call)) return LIGER_OK;
    LIGER_TRY(require_logits(call, BIT(logits)));
    LIGER_REQUIRE(ARGS(call)->logits_kept != IN_DWEIGHT, LIGER_ERR_ARGUMENT,
                  "%s: logits must be absent where logits_kept is %d: they are in dweight", call->door->function,
                  (int)IN_DWEIGHT);
    LIGER_REQUIRE(call->size[CHUNK] >= most, LIGER_ERR_SHAPE,
                  "%s: logits has %lld rows, but %lld may have to be multiplied", call->door->function,
                  (long long)call->size[CHUNK], (long long)most);
    LIGER_REQUIRE(call->size[SLICE] > 0, LIGER_ERR_SHAPE, "%s: logits has no columns", call->door->function);
    LIGER_REQUIRE(!ARGS(call)->logits_kept || call->size[SLICE] == vocab, LIGER_ERR_SHAPE,
                  "%s: logits has %lld columns, but those that were kept are %lld", call->door->function,
                  (long long)call->size[SLICE], (long long)vocab);
    return LIGER_OK;
}

static int64_t slice_cols(const struct door_call *call) {
    const int64_t cols = call->size[SLICE], vocab = call->size[VOCAB];
    return cols < vocab && cols > 0 ? cols : vocab;
}

static size_t backward_loop(const struct door_call *call) {
    const struct linear_slices loop = {
        .head = {.dtype = call->t, .hidden = call->size[HIDDEN], .vocab = call->size[VOCAB]},
        .rows = most_rows(call, ARGS(call)->valid_rows),
        .slice_cols = slice_cols(call),
        .in_place = slices_in_place(call),
        .dx = door_has(call, BIT(dx)) ? (void *)(uintptr_t)call : NULL,
        .dx_dtype = door_has(call, BIT(dx)) ? (liger_dtype)ARGS(call)->dx.dtype : call->t,
        .dbias = door_has(call, BIT(dbias)) ? (float *)(void *)(uintptr_t)call : NULL,
        .place_of = selects(call, ARGS(call)->valid_rows) ? (const int64_t *)(const void *)call : NULL,
    };
    return linear_slices_workspace(call->context, &loop);
}
static size_t backward_workspace(const struct door_call *call) {
    return scratch_of(call, ARGS(call)->valid_rows, NULL, true, backward_loop(call)).bytes;
}

static const struct door_rule backward_rules[] = {
    OPERANDS(backward),
    {ARG(selected_ids), IN, INDEX, VECTOR(IDS), TO_POINTER(selected_ids), DTYPE_TO(selected_dtype), ONLY_WITH(d_selected_log_probs)},
    OPTIONS,
    {INT32(logits_kept),  BETWEEN(0, 2), TO(kept)},
    {ARG(logits), SCRATCH, T, DIMS(2, CHUNK, SLICE), TO_PITCHED(backward.head.logits), PITCH_TO(backward.head.logits_stride), OPTIONAL},
    {CHECK(check_slice)},
    {ARG(log_prob),         IN, DTYPE(F32), VECTOR(ROWS),             TO_POINTER(log_prob), ONLY_WITH(d_log_prob)},
    {ARG(normalizer),       IN, DTYPE(F32), DIMS(2, ROWS, EXACTLY(2)), TO_POINTER(normalizer)},
    {ARG(entropy),          IN, DTYPE(F32), VECTOR(ROWS),             TO_POINTER(entropy), ONLY_WITH(d_entropy)},
    {ARG(log_sum_sq_probs), IN, DTYPE(F32), VECTOR(ROWS),             TO_POINTER(log_sum_sq_probs), ONLY_WITH(d_log_sum_sq_probs)},
    UPSTREAM(log_prob), UPSTREAM(entropy), UPSTREAM(lse), UPSTREAM(log_sum_sq_probs), UPSTREAM(mean_logits),
    {ARG(d_selected_log_probs), IN, DTYPE(F32), DIMS(2, ROWS, IDS), TO_POINTER(upstream.selected), ONLY_WITH(selected_ids)},
    {ARG(dx),      OUT, T_OR_F32,   LIKE(x),       TO_PITCHED(backward.dx), PITCH_TO(backward.dx_stride), DTYPE_TO(backward.dx_dtype), OPTIONAL},
    {ARG(dweight), OUT, T_OR_F32,   LIKE(weight),  TO_POINTER(backward.dweight), DTYPE_TO(backward.dweight_dtype), OPTIONAL},
    {ARG(dbias),   OUT, DTYPE(F32), VECTOR(VOCAB), TO_POINTER(backward.dbias), OPTIONAL},
    {WORKSPACE(backward_workspace, x, weight, logits), TO(workspace)},
};
#undef ARGS
#undef DOOR
/* clang-format on */

const struct door linear_logprob_forward_door = DOOR_OF(linear_logprob_forward, forward_rules);
const struct door linear_logprob_backward_door = DOOR_OF(linear_logprob_backward, backward_rules);

/* ---- rows that are left out ------------------------------------------------------------------------------------- */

/* The rows that are multiplied: all as they lie, or those that were found, gathered. */
struct selection {
    int64_t rows, most;
    const void *x;
    int64_t x_stride;
    const int64_t *row_of, *place_of; /* NULL: all */
    const int64_t *count;             /* where the host does not know it */
};

static struct logprob_ids_problem ids_of(const struct door_call *call, const struct whole_problem *whole) {
    return (struct logprob_ids_problem){
        .ids = whole->selected_ids,
        .dtype = whole->selected_dtype,
        .count = call->size[IDS],
        .vocab = call->size[VOCAB],
        .op = call->door->function,
    };
}

/* `count` is the host's on the CPU. */
static struct row_select_problem select_of(const struct door_call *call, const struct whole_problem *whole,
                                           const struct scratch *scratch, int64_t *count) {
    return (struct row_select_problem){
        .target = whole->target,
        .target_dtype = whole->target_dtype,
        .rows = call->size[ROWS],
        .ignore_index = whole->ignore_index,
        .vocab = call->size[VOCAB],
        .most = most_rows(call, whole->valid_rows),
        .row_of = scratch->row_of,
        .place_of = scratch->place_of,
        .count = count,
        .op = call->door->function,
    };
}

static liger_status gather(liger_context *context, const struct door_call *call, const struct scratch *scratch,
                           struct selection *found, liger_stream stream) {
    const struct row_gather_problem problem = {
        .dtype = call->t,
        .rows = found->rows,
        .cols = call->size[HIDDEN],
        .x = found->x,
        .x_stride = found->x_stride,
        .row_of = scratch->row_of,
        .y = scratch->x,
    };
    found->x = scratch->x;
    found->x_stride = problem.cols;
    found->row_of = scratch->row_of;
    found->place_of = scratch->place_of;
    return context->kernels->row_gather(context, &problem, stream);
}

static liger_status select_rows(liger_context *context, const struct door_call *call, const struct whole_problem *whole,
                                const struct scratch *scratch, const struct linear_head *head, struct selection *found,
                                liger_stream stream) {
    const bool cpu = context->device == LIGER_DEVICE_CPU;
    const int64_t rows = call->size[ROWS], most = most_rows(call, whole->valid_rows);
    const struct logprob_ids_problem ids = ids_of(call, whole);
    int64_t count = most; /* a GPU's is not known here */
    const struct row_select_problem select = select_of(call, whole, scratch, cpu ? &count : scratch->count);
    *found = (struct selection){.rows = rows, .most = most, .x = head->x, .x_stride = head->x_stride};
    if (!selects(call, whole->valid_rows)) return LIGER_OK;
    if (cpu) LIGER_TRY(context->kernels->logprob_ids(context, &ids, stream)); /* before anything is written */
    LIGER_TRY(context->kernels->row_select(context, &select, stream));
    if (count == rows) return LIGER_OK;
    found->rows = count;
    found->count = scratch->count;
    return gather(context, call, scratch, found, stream);
}

/* What the table has not filled in. */
static void complete_head(const struct door_call *call, const struct selection *found, const struct scratch *scratch,
                          struct linear_head *head) {
    head->dtype = call->t;
    head->hidden = call->size[HIDDEN];
    head->vocab = call->size[VOCAB];
    head->x = found->x;
    head->x_stride = found->x_stride;
    head->workspace = scratch->loop;
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static liger_status statistics(liger_context *context, void *state, int64_t first, int64_t rows, void *logits,
                               int64_t stride, liger_stream stream) {
    struct logprob_rows_problem problem = *(const struct logprob_rows_problem *)state;
    problem.first = first;
    problem.rows = rows;
    problem.logits = logits;
    problem.logits_stride = stride;
    return context->kernels->logprob_rows(context, &problem, stream);
}

static struct logprob_rows_problem rows_of(const struct door_call *call, const struct whole_problem *whole,
                                           const struct selection *found) {
    return (struct logprob_rows_problem){
        .dtype = call->t,
        .target_dtype = whole->target_dtype,
        .selected_dtype = whole->selected_dtype,
        .vocab = call->size[VOCAB],
        .map = whole->map,
        .row_of = found->row_of,
        .target = whole->target,
        .ignore_index = whole->ignore_index,
        .selected_ids = whole->selected_ids,
        .selected_count = call->size[IDS],
        .results = whole->results,
    };
}

/* The results of rows that were left out. */
static liger_status write_ignored(liger_context *context, const struct door_call *call,
                                  const struct whole_problem *whole, const struct selection *found,
                                  liger_stream stream) {
    const struct logprob_ignored_problem problem = {
        .rows = call->size[ROWS],
        .selected_count = call->size[IDS],
        .place_of = found->place_of,
        .count = found->count,
        .most = found->most,
        .results = whole->results,
    };
    return context->kernels->logprob_ignored(context, &problem, stream);
}

liger_status liger_linear_logprob_forward(liger_context *context, const liger_linear_logprob_forward_args *given,
                                          liger_stream stream) {
    liger_linear_logprob_forward_args args;
    struct whole_problem whole = {.kept = 0};
    struct door_call call;
    struct selection found;
    LIGER_TRY(door_enter(&call, &linear_logprob_forward_door, context, given, &args, &whole));
    if (call.size[ROWS] == 0) return LIGER_OK;
    if (call.size[IDS] == 0) whole.results.selected = NULL;
    const struct scratch scratch = scratch_of(&call, whole.valid_rows, whole.workspace, false, forward_loop(&call));
    LIGER_TRY(liger_gemm_ready(context)); /* before anything is written */
    struct linear_loss *loop = &whole.forward;
    LIGER_TRY(select_rows(context, &call, &whole, &scratch, &loop->head, &found, stream));
    struct logprob_rows_problem rows = rows_of(&call, &whole, &found);
    complete_head(&call, &found, &scratch, &loop->head);
    loop->rows = found.rows;
    loop->chunk_rows = call.size[CHUNK];
    loop->step = statistics;
    loop->state = &rows;
    LIGER_TRY(linear_loss_run(context, loop, stream));
    return found.row_of ? write_ignored(context, &call, &whole, &found, stream) : LIGER_OK;
}

WORKSPACE_QUERY(linear_logprob_forward)

#define DOOR linear_logprob_forward, whole_problem
liger_status liger_linear_logprob_forward_chunk_rows(liger_context *context,
                                                     const liger_linear_logprob_forward_args *given, size_t *rows) {
    liger_linear_logprob_forward_args args;
    const struct door *door = &linear_logprob_forward_door;
    struct door_call call;
    LIGER_REQUIRE(context != NULL && rows != NULL, LIGER_ERR_ARGUMENT, "%s_chunk_rows: context or rows is NULL",
                  door->function);
    LIGER_TRY(door_query(&call, door, context, given, &args, BITS(x, weight)));
    const int64_t most = most_rows(&call, args.valid_rows), hidden = call.size[HIDDEN], vocab = call.size[VOCAB];
    *rows = (size_t)(args.keep ? linear_loss_kept_rows(context, call.t, most, hidden, vocab)
                               : linear_loss_chunk_rows(context, call.t, most, hidden, vocab, false));
    return LIGER_OK;
}
#undef DOOR

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* Everything about the rows that does not depend on a slice. */
static liger_status weigh_rows(liger_context *context, const struct door_call *call, const struct whole_problem *whole,
                               const struct scratch *scratch, const struct selection *found, liger_stream stream) {
    struct logprob_ids_problem ids = ids_of(call, whole);
    ids.first = scratch->id_first, ids.next = scratch->id_next;
    const struct logprob_weights_problem weights = {
        .target_dtype = whole->target_dtype,
        .rows = found->rows,
        .vocab = call->size[VOCAB],
        .selected_count = call->size[IDS],
        .row_of = found->row_of,
        .count = found->count,
        .most = found->most,
        .target = whole->target,
        .ignore_index = whole->ignore_index,
        .log_prob = whole->log_prob,
        .normalizer = whole->normalizer,
        .entropy = whole->entropy,
        .log_sum_sq_probs = whole->log_sum_sq_probs,
        .upstream = whole->upstream,
        .weights = scratch->weights,
    };
    if (ids.count > 0) LIGER_TRY(context->kernels->logprob_ids(context, &ids, stream));
    return context->kernels->logprob_weights(context, &weights, stream);
}

static liger_status run_slices(liger_context *context, const struct door_call *call, struct whole_problem *whole,
                               const struct scratch *scratch, const struct selection *found, int64_t in_place,
                               liger_stream stream) {
    struct linear_slices *loop = &whole->backward;
    struct logits_gradient_problem slice = {
        .dtype = call->t,
        .rows = found->rows,
        .vocab = call->size[VOCAB],
        .map = whole->map,
        .weights = scratch->weights,
        .id_first = scratch->id_first,
        .id_next = scratch->id_next,
        .selected = whole->upstream.selected,
        .selected_count = call->size[IDS],
        .row_of = found->row_of,
    };
    complete_head(call, found, scratch, &loop->head);
    loop->rows = found->rows;
    loop->slice_cols = slice_cols(call);
    loop->kept = whole->kept != 0;
    loop->in_place = in_place;
    if (in_place) loop->head.logits = loop->dweight, loop->head.logits_stride = loop->head.vocab;
    loop->dx_rows = call->size[ROWS];
    loop->place_of = found->place_of;
    loop->gradient = linear_slices_from_rows;
    loop->state = &slice;
    return linear_slices_run(context, loop, stream);
}

liger_status liger_linear_logprob_backward(liger_context *context, const liger_linear_logprob_backward_args *given,
                                           liger_stream stream) {
    liger_linear_logprob_backward_args args;
    struct whole_problem whole = {.kept = 0};
    struct door_call call;
    struct selection found = {.rows = 0};
    LIGER_TRY(door_enter(&call, &linear_logprob_backward_door, context, given, &args, &whole));
    if (call.size[IDS] == 0) whole.upstream.selected = NULL;
    const struct scratch scratch = scratch_of(&call, whole.valid_rows, whole.workspace, true, backward_loop(&call));
    LIGER_TRY(liger_gemm_ready(context)); /* before anything is written */
    if (call.size[ROWS] > 0) {
        LIGER_TRY(select_rows(context, &call, &whole, &scratch, &whole.backward.head, &found, stream));
        if (found.rows > 0) LIGER_TRY(weigh_rows(context, &call, &whole, &scratch, &found, stream));
    }
    return run_slices(context, &call, &whole, &scratch, &found, slices_in_place(&call), stream);
}

WORKSPACE_QUERY(linear_logprob_backward)

#define DOOR linear_logprob_backward, whole_problem
liger_status liger_linear_logprob_backward_slice_cols(liger_context *context,
                                                      const liger_linear_logprob_backward_args *given, size_t *cols) {
    liger_linear_logprob_backward_args args;
    const struct door *door = &linear_logprob_backward_door;
    struct door_call call;
    LIGER_REQUIRE(context != NULL && cols != NULL, LIGER_ERR_ARGUMENT, "%s_slice_cols: context or cols is NULL",
                  door->function);
    LIGER_TRY(door_query(&call, door, context, given, &args, BITS(x, weight)));
    *cols = slices_in_place(&call)
                ? 0
                : (size_t)linear_slices_cols(context, call.t, most_rows(&call, args.valid_rows), call.size[HIDDEN],
                                             call.size[VOCAB], door_has(&call, BIT(dx)));
    return LIGER_OK;
}
