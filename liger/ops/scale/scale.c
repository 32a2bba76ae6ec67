/* scale.c - the door of scale: what it takes, and the problem that a kernel gets. */
#include "liger/ops/scale/scale.h"

#include "liger/core/door_rules.h"
#include "liger/ops/scale/scale_problem.h"

#define DOOR scale, scale_problem

/* One target per row, and rows of equal length. */
static liger_status fits_rows(const struct door_call *call, const liger_tensor *target, const char *what) {
    const int64_t rows = liger_tensor_elements(target),
                  count = liger_tensor_elements(door_tensor(call->args, DOOR_AT(DOOR, x)));
    LIGER_REQUIRE(target->ndim == 1, LIGER_ERR_SHAPE, "%s has %d dimensions, but must have 1", what, target->ndim);
    LIGER_REQUIRE(rows > 0 ? count % rows == 0 : count == 0, LIGER_ERR_SHAPE,
                  "%s has %lld elements, but x has %lld, which are not as many equal rows", what, (long long)rows,
                  (long long)count);
    return LIGER_OK;
}

/* clang-format off */
static const struct door_rule rules[] = {
    {ARG(x),     IN,  FLOAT_T,    ANY_SHAPE, TO_POINTER(x), DTYPE_TO(x_dtype)},
    {ARG(scale), IN,  DTYPE(F32), ELEMENT,   TO_POINTER(scale), OPTIONAL},
    {ARG(y),     OUT, ANY_FLOAT,  LIKE(x),   TO_POINTER(y), DTYPE_TO(y_dtype), MAY_BE(x)},
    {ARG(target), IN, INDEX,      SHAPE(fits_rows), TO_POINTER(target), DTYPE_TO(target_dtype), OPTIONAL},
    {INT64(ignore_index), TO(ignore_index)},
};
#undef DOOR
/* clang-format on */

const struct door scale_door = DOOR_OF(scale, rules);

liger_status liger_scale(liger_context *context, const liger_scale_args *given, liger_stream stream) {
    liger_scale_args args;
    struct scale_problem problem = {.scale = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &scale_door, context, given, &args, &problem));
    problem.count = liger_tensor_elements(&args.x);
    if (problem.count == 0) return LIGER_OK;
    problem.rows = problem.target ? liger_tensor_elements(&args.target) : 0;
    return context->kernels->scale(context, &problem, stream);
}
