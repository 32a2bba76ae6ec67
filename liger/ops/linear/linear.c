/* linear.c - a composite: products and column sums behind their slots, without device code. */
#include "liger/ops/linear/linear.h"

#include "liger/chunk/linear_head.h"
#include "liger/core/door_rules.h"
#include "liger/ops/column_sum/column_sum_problem.h"
#include "liger/ops/gemm/gemm_problem.h"

enum { ROWS = 1, HIDDEN, VOCAB };

static size_t product_bytes(const struct door_call *call) {
    return call->context->device == LIGER_DEVICE_CPU ? 0 : GEMM_WORKSPACE_BYTES;
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* What the table fills in. */
struct forward_problem {
    struct gemm_problem gemm;
};

#define DOOR linear_forward, forward_problem
static size_t forward_workspace(const struct door_call *call) {
    const size_t strip = (size_t)call->size[ROWS] * 256 * sizeof(float), products = product_bytes(call);
    if (!door_has(call, BIT(bias)) || products == 0) return 0;
    return strip > products ? strip : products; /* of f32, and of whole tiles however many the rows are */
}
/* clang-format off */
static const struct door_rule forward_rules[] = {
    {ARG(x),      IN,  FLOAT_T,  DIMS(2, ROWS, HIDDEN),  TO_PITCHED(gemm.a), PITCH_TO(gemm.lda)},
    {ARG(weight), IN,  T,        DIMS(2, VOCAB, HIDDEN), TO_POINTER(gemm.b)},
    {ARG(bias),   IN,  T,        VECTOR(VOCAB),          TO_POINTER(gemm.bias), OPTIONAL},
    {ARG(y),      OUT, T_OR_F32, DIMS(2, ROWS, VOCAB),   TO_PITCHED(gemm.c), PITCH_TO(gemm.ldc), DTYPE_TO(gemm.c_dtype)},
    {WORKSPACE(forward_workspace, x, weight), TO(gemm.workspace)},
};
/* clang-format on */
#undef DOOR

const struct door linear_forward_door = DOOR_OF(linear_forward, forward_rules);

liger_status liger_linear_forward(liger_context *context, const liger_linear_forward_args *given, liger_stream stream) {
    liger_linear_forward_args args;
    struct forward_problem problem = {.gemm = {.transpose_b = true}};
    struct gemm_problem *gemm = &problem.gemm;
    struct door_call call;
    LIGER_TRY(door_enter(&call, &linear_forward_door, context, given, &args, &problem));
    gemm->dtype = call.t;
    gemm->m = call.size[ROWS], gemm->n = call.size[VOCAB], gemm->k = gemm->ldb = call.size[HIDDEN];
    gemm->workspace_bytes = forward_workspace(&call);
    if (gemm->m == 0 || gemm->n == 0) return LIGER_OK;
    LIGER_TRY(liger_gemm_ready(context)); /* before anything is written */
    return context->kernels->gemm(context, gemm, stream);
}

WORKSPACE_QUERY(linear_forward)

/* ---- backward --------------------------------------------------------------------------------------------------- */

struct backward_problem {
    struct linear_head head; /* dy are its logits */
    struct linear_result dx, dweight;
    float *dbias;
    int32_t accumulate;
};

#define DOOR linear_backward, backward_problem
static size_t sum_bytes(const struct door_call *call) {
    const size_t bytes = column_sum_workspace(call->size[ROWS], call->size[VOCAB]);
    return door_has(call, BIT(dbias)) ? door_padded(bytes) : 0;
}
static size_t backward_workspace(const struct door_call *call) { return product_bytes(call) + sum_bytes(call); }
/* clang-format off */
static const struct door_rule backward_rules[] = {
    {ARG(dy),      IN,  FLOAT_T,    DIMS(2, ROWS, VOCAB),  TO_PITCHED(head.logits), PITCH_TO(head.logits_stride)},
    {ARG(x),       IN,  T,          DIMS(2, ROWS, HIDDEN), TO_PITCHED(head.x), PITCH_TO(head.x_stride)},
    {ARG(weight),  IN,  T,          DIMS(2, VOCAB, HIDDEN), TO_POINTER(head.weight)},
    {ARG(dx),      OUT, T,          LIKE(x),       TO_PITCHED(dx.data), PITCH_TO(dx.stride), OPTIONAL},
    {ARG(dweight), OUT, T_OR_F32,   LIKE(weight),  TO_POINTER(dweight.data), DTYPE_TO(dweight.dtype), OPTIONAL},
    {ARG(dbias),   OUT, DTYPE(F32), VECTOR(VOCAB), TO_POINTER(dbias), OPTIONAL},
    {INT32(accumulate), BETWEEN(0, 1), TO(accumulate)},
    {RESERVED(reserved)},
    {WORKSPACE(backward_workspace, dy, x, weight), TO(head.workspace)},
};
/* clang-format on */
#undef DOOR

const struct door linear_backward_door = DOOR_OF(linear_backward, backward_rules);

/* Of no rows: zeros, or what is there already. */
static liger_status run_empty(liger_context *context, const struct backward_problem *p, liger_stream stream) {
    if (p->accumulate) return LIGER_OK;
    LIGER_TRY(linear_zero(context, p->dweight.data, p->dweight.dtype, p->head.vocab * p->head.hidden, stream));
    return linear_zero(context, p->dbias, LIGER_F32, p->head.vocab, stream);
}

liger_status liger_linear_backward(liger_context *context, const liger_linear_backward_args *given,
                                   liger_stream stream) {
    liger_linear_backward_args args;
    struct backward_problem p = {.dbias = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &linear_backward_door, context, given, &args, &p));
    p.head.dtype = p.dx.dtype = call.t;
    p.head.hidden = p.dweight.stride = call.size[HIDDEN];
    p.head.vocab = call.size[VOCAB];
    p.head.product_bytes = product_bytes(&call), p.head.sum_bytes = sum_bytes(&call);
    p.dweight.accumulate = p.accumulate != 0;
    const struct linear_part all = {0, call.size[ROWS], 0, p.head.vocab};
    if (all.rows == 0) return run_empty(context, &p, stream);
    LIGER_TRY(liger_gemm_ready(context));
    if (p.dx.data && p.head.hidden > 0) LIGER_TRY(linear_head_dx(context, &p.head, &all, p.dx, stream));
    if (all.cols == 0) return LIGER_OK;
    if (p.dweight.data && p.head.hidden > 0) LIGER_TRY(linear_head_dweight(context, &p.head, &all, p.dweight, stream));
    return p.dbias ? linear_head_dbias(context, &p.head, &all, p.dbias, p.accumulate != 0, stream) : LIGER_OK;
}

WORKSPACE_QUERY(linear_backward)
