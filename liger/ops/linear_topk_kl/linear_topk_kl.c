/* linear_topk_kl.c - a composite: the chunk loop of chunk/linear_loss.c with the rows of a divergence as its step. */
#include "liger/ops/linear_topk_kl/linear_topk_kl.h"

#include "liger/chunk/counted_loss.h"
#include "liger/core/door_rules.h"
#include "liger/ops/linear_topk_kl/linear_topk_kl_problem.h"

enum { ROWS = 1, VOCAB, HIDDEN, CHUNK, K };
static const struct linear_sizes sizes = {ROWS, HIDDEN, VOCAB, CHUNK};

/* What the table fills in. */
struct whole_problem {
    struct counted_loss loss;
    struct linear_topk_kl_problem rows; /* of the whole batch; a chunk's are offset from them */
    struct linear_loss chunks;
    float temperature;
    int32_t reduction, raw_gradient;
};

/* ---- what the function takes -------------------------------------------------------------------------------------- */

#define DOOR linear_topk_kl, whole_problem

static liger_status check_temperature(struct door_call *call) {
    const float temperature = ((const liger_linear_topk_kl_args *)call->args)->temperature;
    LIGER_TRY(linear_check_temperature(call));
    LIGER_REQUIRE(temperature > 0, LIGER_ERR_ARGUMENT, "%s: temperature is %g, but must be larger than 0",
                  call->door->function, (double)temperature);
    return LIGER_OK;
}

/* Behind what the loss needs: scratch of the products, then what is taken of a chunk. */
struct layout {
    size_t products, listed, taken;
};

static struct layout layout_of(const struct door_call *call) {
    void *there = (void *)(uintptr_t)call; /* a pointer that is not NULL */
    const int64_t rows = call->size[ROWS], chunk = call->size[CHUNK] < rows ? call->size[CHUNK] : rows;
    struct linear_loss chunks = {
        .head = {.bias = door_has(call, BIT(bias)) ? there : NULL},
        .dbias = door_has(call, BIT(dbias)) ? there : NULL,
    };
    linear_loss_sized(call, sizes, &chunks);
    return (struct layout){
        .products = door_padded(linear_loss_workspace(call->context, &chunks)),
        .listed = door_padded((size_t)chunk * sizeof(struct linear_topk_kl_listed)),
        .taken = door_padded((size_t)(chunk * call->size[K]) * liger_dtype_size(call->t)),
    };
}

static size_t workspace_bytes(const struct door_call *call) {
    const struct layout layout = layout_of(call);
    return counted_loss_workspace(call->size[ROWS]) + layout.products + layout.listed + layout.taken;
}

/* clang-format off */
static const struct door_rule rules[] = {
    {ARG(x),        IN,      FLOAT_T,    DIMS(2, ROWS, HIDDEN),  TO_PITCHED(chunks.head.x), PITCH_TO(chunks.head.x_stride)},
    {CHECK(linear_check_weight)},
    {ARG(weight),   IN,      T,          DIMS(2, VOCAB, HIDDEN), TO_POINTER(chunks.head.weight)},
    {ARG(bias),     IN,      T,          VECTOR(VOCAB),          TO_POINTER(chunks.head.bias), OPTIONAL},
    {ARG(ids),      IN,      INDEX,      DIMS(2, ROWS, SOME(K)), TO_PITCHED(rows.ids), PITCH_TO(rows.ids_stride), DTYPE_TO(rows.id_dtype)},
    {ARG(logprobs), IN,      ANY_FLOAT,  LIKE(ids),              TO_PITCHED(rows.logprobs), PITCH_TO(rows.logprobs_stride), DTYPE_TO(rows.logprob_dtype)},
    {ARG(labels),   IN,      INDEX,      VECTOR(ROWS),           TO_POINTER(loss.rows.labels), DTYPE_TO(loss.rows.label_dtype), OPTIONAL},
    {ARG(logits),   SCRATCH, T,          DIMS(2, CHUNK, VOCAB),  TO_PITCHED(chunks.head.logits), PITCH_TO(chunks.head.logits_stride), OPTIONAL},
    {CHECK(linear_check_chunk_or_dweight)},
    {ARG(loss),     OUT,     DTYPE(F32), ELEMENT,                TO_POINTER(loss.loss), OPTIONAL},
    {ARG(dx),       OUT,     T,          LIKE(x),                TO_PITCHED(chunks.dx), PITCH_TO(chunks.dx_stride), OPTIONAL},
    {ARG(dweight),  OUT,     T_OR_F32,   LIKE(weight),           TO_POINTER(chunks.dweight), DTYPE_TO(chunks.dweight_dtype), OPTIONAL},
    {ARG(dbias),    OUT,     DTYPE(F32), VECTOR(VOCAB),          TO_POINTER(chunks.dbias), OPTIONAL},
    {INT64(ignore_index), TO(loss.rows.ignore_index)},
    {FLOAT(temperature),  FINITE, TO(temperature)},
    {CHECK(check_temperature)},
    {INT32(reduction),    BETWEEN(LIGER_LINEAR_KL_BATCHMEAN, LIGER_LINEAR_KL_SUM), TO(reduction)},
    {INT32(raw_gradient), BETWEEN(0, 1), TO(raw_gradient)},
    {RESERVED(reserved)},
    {WORKSPACE(workspace_bytes, x, weight, ids, logits), TO(loss.workspace)},
};
/* clang-format on */

const struct door linear_topk_kl_door = DOOR_OF(linear_topk_kl, rules);

WORKSPACE_QUERY(linear_topk_kl)

liger_status liger_linear_topk_kl_chunk_rows(liger_context *context, const liger_linear_topk_kl_args *given,
                                             size_t *rows) {
    liger_linear_topk_kl_args args;
    return linear_advise_chunk(context, &linear_topk_kl_door, given, &args, BITS(x, weight), BIT(dweight), true, sizes,
                               rows);
}

/* ---- the run ------------------------------------------------------------------------------------------------------ */

/* Nobody can be told of them on a GPU. */
static liger_status look_at_ids(liger_context *context, const struct whole_problem *whole, liger_stream stream) {
    struct linear_topk_kl_problem problem = whole->rows;
    if (context->device != LIGER_DEVICE_CPU) return LIGER_OK;
    problem.rows = whole->loss.count;
    problem.counted = whole->loss.rows;
    problem.logits = NULL;
    return context->kernels->linear_topk_kl(context, &problem, stream);
}

static liger_status step(liger_context *context, void *state, int64_t first, int64_t rows, void *logits, int64_t stride,
                         liger_stream stream) {
    struct linear_topk_kl_problem problem = *(const struct linear_topk_kl_problem *)state;
    problem.rows = rows;
    problem.logits = logits;
    problem.logits_stride = stride;
    problem.ids = (const char *)problem.ids + first * problem.ids_stride * (int64_t)liger_dtype_size(problem.id_dtype);
    problem.logprobs = (const char *)problem.logprobs +
                       first * problem.logprobs_stride * (int64_t)liger_dtype_size(problem.logprob_dtype);
    problem.counted = counted_rows_from(problem.counted, first);
    if (problem.loss) problem.loss += first;
    return context->kernels->linear_topk_kl(context, &problem, stream);
}

static void complete(const struct door_call *call, struct whole_problem *whole) {
    const struct layout layout = layout_of(call);
    struct linear_loss *chunks = &whole->chunks;
    counted_loss_sized(call, sizes, &whole->loss, chunks);
    whole->rows.dtype = call->t;
    whole->rows.vocab = chunks->head.vocab;
    chunks->step = step;
    chunks->state = &whole->rows;
    whole->loss.mean = whole->reduction != LIGER_LINEAR_KL_SUM;
    whole->loss.share = whole->reduction == LIGER_LINEAR_KL_MEAN ? 1.0 / (double)chunks->head.vocab : 1;
    whole->rows.k = call->size[K];
    whole->rows.inverse = 1 / whole->temperature;
    whole->rows.raw_gradient = whole->raw_gradient != 0;
    whole->rows.gradient = chunks->dx || chunks->dweight || chunks->dbias;
    whole->rows.listed = (struct linear_topk_kl_listed *)((char *)chunks->head.workspace + layout.products);
    whole->rows.taken = (char *)whole->rows.listed + layout.listed;
}

liger_status liger_linear_topk_kl(liger_context *context, const liger_linear_topk_kl_args *given, liger_stream stream) {
    liger_linear_topk_kl_args args;
    struct whole_problem whole = {.reduction = 0};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &linear_topk_kl_door, context, given, &args, &whole));
    complete(&call, &whole);
    LIGER_TRY(look_at_ids(context, &whole, stream)); /* before anything is written */
    return counted_loss_run(context, &whole.loss, &whole.chunks, &whole.rows.counted, &whole.rows.loss, stream);
}
