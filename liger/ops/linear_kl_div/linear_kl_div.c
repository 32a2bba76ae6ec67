/* linear_kl_div.c - a composite: the chunk loop of chunk/linear_loss.c with the rows of a divergence as its step. */
#include "liger/ops/linear_kl_div/linear_kl_div.h"

#include "liger/chunk/counted_loss.h"
#include "liger/core/door_rules.h"
#include "liger/ops/linear_kl_div/linear_kl_div_problem.h"

enum { ROWS = 1, VOCAB, HIDDEN, CHUNK };
static const struct linear_sizes sizes = {ROWS, HIDDEN, VOCAB, CHUNK};

/* What the table fills in. */
struct whole_problem {
    struct counted_loss loss;
    struct linear_kl_div_problem rows; /* of the whole batch; a chunk's are offset from them */
    struct linear_loss chunks;
    float temperature;
    int32_t reduction, raw_gradient;
};

/* ---- what the function takes -------------------------------------------------------------------------------------- */

#define DOOR linear_kl_div, whole_problem

static size_t workspace_bytes(const struct door_call *call) {
    struct linear_loss chunks = {.dx = NULL};
    linear_loss_sized(call, sizes, &chunks);
    return counted_loss_workspace(call->size[ROWS]) + linear_loss_workspace(call->context, &chunks);
}

/* clang-format off */
static const struct door_rule rules[] = {
    {ARG(x),       IN,      FLOAT_T,    DIMS(2, ROWS, HIDDEN),  TO_PITCHED(chunks.head.x), PITCH_TO(chunks.head.x_stride)},
    {CHECK(linear_check_weight)},
    {ARG(weight),  IN,      T,          DIMS(2, VOCAB, HIDDEN), TO_POINTER(chunks.head.weight)},
    {ARG(target),  IN,      ANY_FLOAT,  DIMS(2, ROWS, VOCAB),   TO_PITCHED(rows.target), PITCH_TO(rows.target_stride), DTYPE_TO(rows.target_dtype)},
    {ARG(labels),  IN,      INDEX,      VECTOR(ROWS),           TO_POINTER(loss.rows.labels), DTYPE_TO(loss.rows.label_dtype), OPTIONAL},
    {ARG(logits),  SCRATCH, T,          DIMS(2, CHUNK, VOCAB),  TO_PITCHED(chunks.head.logits), PITCH_TO(chunks.head.logits_stride), OPTIONAL},
    {CHECK(linear_check_chunk_or_dweight)},
    {ARG(loss),    OUT,     DTYPE(F32), ELEMENT,                TO_POINTER(loss.loss), OPTIONAL},
    {ARG(dx),      OUT,     T,          LIKE(x),                TO_PITCHED(chunks.dx), PITCH_TO(chunks.dx_stride), OPTIONAL},
    {ARG(dweight), OUT,     T_OR_F32,   LIKE(weight),           TO_POINTER(chunks.dweight), DTYPE_TO(chunks.dweight_dtype), OPTIONAL},
    {INT64(ignore_index), TO(loss.rows.ignore_index)},
    {FLOAT(temperature),  FINITE, TO(temperature)},
    {CHECK(linear_check_temperature)},
    {FLOAT(eps),          FINITE, TO(rows.eps)},
    {INT32(reduction),    BETWEEN(LIGER_LINEAR_KL_BATCHMEAN, LIGER_LINEAR_KL_SUM), TO(reduction)},
    {INT32(raw_gradient), BETWEEN(0, 1), TO(raw_gradient)},
    {WORKSPACE(workspace_bytes, x, weight, logits), TO(loss.workspace)},
};
/* clang-format on */

const struct door linear_kl_div_door = DOOR_OF(linear_kl_div, rules);

WORKSPACE_QUERY(linear_kl_div)

liger_status liger_linear_kl_div_chunk_rows(liger_context *context, const liger_linear_kl_div_args *given,
                                            size_t *rows) {
    liger_linear_kl_div_args args;
    return linear_advise_chunk(context, &linear_kl_div_door, given, &args, BITS(x, weight), BIT(dweight), true, sizes,
                               rows);
}

/* ---- the run ------------------------------------------------------------------------------------------------------ */

static liger_status step(liger_context *context, void *state, int64_t first, int64_t rows, void *logits, int64_t stride,
                         liger_stream stream) {
    struct linear_kl_div_problem problem = *(const struct linear_kl_div_problem *)state;
    const int64_t element = (int64_t)liger_dtype_size(problem.target_dtype);
    problem.rows = rows;
    problem.logits = logits;
    problem.logits_stride = stride;
    if (problem.dlogits) problem.dlogits = logits;
    problem.target = (const char *)problem.target + first * problem.target_stride * element;
    problem.counted = counted_rows_from(problem.counted, first);
    if (problem.loss) problem.loss += first;
    return context->kernels->linear_kl_div(context, &problem, stream);
}

static void complete(const struct door_call *call, struct whole_problem *whole) {
    struct linear_loss *chunks = &whole->chunks;
    counted_loss_sized(call, sizes, &whole->loss, chunks);
    whole->rows.dtype = call->t;
    whole->rows.vocab = chunks->head.vocab;
    chunks->step = step;
    chunks->state = &whole->rows;
    whole->loss.mean = whole->reduction != LIGER_LINEAR_KL_SUM;
    whole->loss.share = whole->reduction == LIGER_LINEAR_KL_MEAN ? 1.0 / (double)chunks->head.vocab : 1;
    whole->rows.inverse = 1 / whole->temperature;
    whole->rows.raw_gradient = whole->raw_gradient != 0;
    whole->rows.dlogits = chunks->dx || chunks->dweight ? chunks->head.logits : NULL;
}

liger_status liger_linear_kl_div(liger_context *context, const liger_linear_kl_div_args *given, liger_stream stream) {
    liger_linear_kl_div_args args;
    struct whole_problem whole = {.reduction = 0};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &linear_kl_div_door, context, given, &args, &whole));
    complete(&call, &whole);
    return counted_loss_run(context, &whole.loss, &whole.chunks, &whole.rows.counted, &whole.rows.loss, stream);
}
