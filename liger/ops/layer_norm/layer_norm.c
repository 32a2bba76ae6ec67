/* layer_norm.c - the door of LayerNorm: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/layer_norm/layer_norm.h"

#include "liger/core/door_rules.h"
#include "liger/ops/layer_norm/layer_norm_problem.h"

enum { ROWS = 1, COLS };

/* The dtype of weight and bias; gradients of parameters that are not there are f32. */
static liger_dtype parameter_dtype(const liger_tensor *weight, const liger_tensor *bias) {
    const liger_tensor *given = weight->data ? weight : bias;
    return given && given->data ? (liger_dtype)given->dtype : LIGER_F32;
}

/* clang-format off */
#define DOOR layer_norm_forward, layer_norm_forward_problem
static liger_status one_parameter_dtype(struct door_call *call) {
    const liger_layer_norm_forward_args *args = call->args;
    if (!door_has(call, BIT(weight)) || !door_has(call, BIT(bias))) return LIGER_OK;
    LIGER_REQUIRE(args->bias.dtype == args->weight.dtype, LIGER_ERR_DTYPE,
                  "layer_norm_forward: bias is %s, but weight is %s", liger_dtype_name(args->bias.dtype),
                  liger_dtype_name(args->weight.dtype));
    return LIGER_OK;
}

static const struct door_rule forward_rules[] = {
    {ARG(x),      IN,  FLOAT_T,    MATRIX(ROWS, SOME(COLS)), TO_ROWS(x)},
    {ARG(weight), IN,  T_OR_F32,   VECTOR(COLS),             TO_POINTER(weight), OPTIONAL},
    {ARG(bias),   IN,  T_OR_F32,   VECTOR(COLS),             TO_POINTER(bias),   OPTIONAL},
    {CHECK(one_parameter_dtype)},
    {ARG(y),      OUT, T,          LIKE(x),                  TO_ROWS(y),         MAY_BE(x)},
    {ARG(mean),   OUT, DTYPE(F32), VECTOR(ROWS),             TO_POINTER(mean),   OPTIONAL},
    {ARG(rstd),   OUT, DTYPE(F32), VECTOR(ROWS),             TO_POINTER(rstd),   OPTIONAL},
    {FLOAT(epsilon), AT_LEAST(0), TO(epsilon)},
    {RESERVED(reserved)},
};
#undef DOOR
/* clang-format on */

const struct door layer_norm_forward_door = DOOR_OF(layer_norm_forward, forward_rules);

liger_status liger_layer_norm_forward(liger_context *context, const liger_layer_norm_forward_args *given,
                                      liger_stream stream) {
    liger_layer_norm_forward_args args;
    struct layer_norm_forward_problem problem = {.weight = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &layer_norm_forward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    problem.weight_dtype = parameter_dtype(&args.weight, &args.bias);
    return context->kernels->layer_norm_forward(context, &problem, stream);
}

static int64_t partials_of(const struct door_call *call) {
    const int64_t row_bytes = call->size[COLS] * (int64_t)liger_dtype_size(call->t);
    return norm_partials(call->context->multiprocessors, call->size[ROWS], row_bytes);
}

static size_t partial_bytes(const struct door_call *call) {
    return (size_t)(2 * partials_of(call) * call->size[COLS]) * sizeof(float);
}

/* clang-format off */
#define DOOR layer_norm_backward, layer_norm_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(x),       IN,  FLOAT_T,    MATRIX(ROWS, SOME(COLS)), TO_ROWS(x)},
    {ARG(dy),      IN,  T,          LIKE(x),                  TO_ROWS(dy)},
    {ARG(weight),  IN,  T_OR_F32,   VECTOR(COLS),             TO_POINTER(weight),  OPTIONAL},
    {ARG(mean),    IN,  DTYPE(F32), VECTOR(ROWS),             TO_POINTER(mean)},
    {ARG(rstd),    IN,  DTYPE(F32), VECTOR(ROWS),             TO_POINTER(rstd)},
    {ARG(dx),      OUT, T,          LIKE(x),                  TO_ROWS(dx),         OPTIONAL, MAY_BE(dy)},
    {ARG(dweight), OUT, DTYPE_OF(weight), VECTOR(COLS),       TO_POINTER(dweight), OPTIONAL},
    {ARG(dbias),   OUT, DTYPE_OF(weight), VECTOR(COLS),       TO_POINTER(dbias),   OPTIONAL},
    {WORKSPACE(partial_bytes, x), ONLY_WITH(dweight, dbias), TO(workspace)},
};
#undef DOOR
/* clang-format on */

const struct door layer_norm_backward_door = DOOR_OF(layer_norm_backward, backward_rules);

liger_status liger_layer_norm_backward(liger_context *context, const liger_layer_norm_backward_args *given,
                                       liger_stream stream) {
    liger_layer_norm_backward_args args;
    struct layer_norm_backward_problem problem = {.weight = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &layer_norm_backward_door, context, given, &args, &problem));
    const bool some = door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols);
    const bool parameters = problem.dweight != NULL || problem.dbias != NULL;
    problem.weight_dtype = parameter_dtype(&args.weight, NULL);
    problem.partials = partials_of(&call);
    if (!parameters && (problem.dx.data == NULL || !some)) return LIGER_OK;
    return context->kernels->layer_norm_backward(context, &problem, stream);
}

WORKSPACE_QUERY(layer_norm_backward)
