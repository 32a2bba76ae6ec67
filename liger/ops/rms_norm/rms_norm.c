/* rms_norm.c - the door of RMSNorm and add+RMSNorm: check once, lower to a problem, call through the table. */
#include "liger/ops/rms_norm/rms_norm.h"

#include "liger/core/args.h"
#include "liger/core/check.h"
#include "liger/core/half.h"
#include "liger/ops/rms_norm/rms_norm_problem.h"

/* "function: argument" of what the plain and the fused function share, for the messages. */
struct forward_names {
    const char *op, *x, *weight, *y, *rstd;
};
struct backward_names {
    const char *op, *dy, *x, *x_alone, *weight, *rstd, *dx, *dweight;
};

#define FORWARD_NAMES(op)                                                                                              \
    { op, op ": x", op ": weight", op ": y", op ": rstd" }
#define BACKWARD_NAMES(op, x)                                                                                          \
    { op, op ": dy", op ": " x, x, op ": weight", op ": rstd", op ": dx", op ": dweight" }

static const struct forward_names plain_forward = FORWARD_NAMES("rms_norm_forward");
static const struct forward_names add_forward = FORWARD_NAMES("add_rms_norm_forward");
static const struct backward_names plain_backward = BACKWARD_NAMES("rms_norm_backward", "x");
static const struct backward_names add_backward = BACKWARD_NAMES("add_rms_norm_backward", "sum");

static liger_status check_scalars(const char *op, float epsilon, int32_t casting) {
    LIGER_REQUIRE(epsilon >= 0, LIGER_ERR_ARGUMENT, "%s: epsilon is %g, but must be 0 or more", op, (double)epsilon);
    LIGER_REQUIRE(casting >= LIGER_CAST_LLAMA && casting <= LIGER_CAST_NONE, LIGER_ERR_ARGUMENT,
                  "%s: casting is %d, but must be in [%d, %d]", op, casting, LIGER_CAST_LLAMA, LIGER_CAST_NONE);
    return LIGER_OK;
}

/* `what` is the tensor that is normalised. */
static liger_status check_cols(const liger_tensor *x, const char *what) {
    LIGER_REQUIRE(x->ndim >= 1, LIGER_ERR_SHAPE, "%s has 0 dimensions, but must have 1 to %d", what, LIGER_MAX_DIMS);
    LIGER_REQUIRE(liger_tensor_cols(x) > 0, LIGER_ERR_SHAPE, "%s.shape[%d] is 0, but must be 1 or more", what,
                  x->ndim - 1);
    return LIGER_OK;
}

static liger_status check_weight(const liger_tensor *weight, const liger_tensor *x, const char *what) {
    if (weight->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype_or_f32(weight, what, x->dtype));
    return liger_check_vector(weight, what, liger_tensor_cols(x));
}

static liger_status check_rstd(const liger_tensor *rstd, const liger_tensor *x, const char *what) {
    LIGER_TRY(liger_check_dtype(rstd, what, LIGER_F32));
    return liger_check_vector(rstd, what, liger_tensor_rows(x));
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* Checks what both operators share and fills the problem but for residual and sum. */
static liger_status lower_forward(const struct forward_names *names, const liger_add_rms_norm_forward_args *args,
                                  struct rms_norm_forward_problem *problem) {
    const liger_tensor *x = &args->x, *weight = &args->weight, *y = &args->y;
    LIGER_TRY(check_scalars(names->op, args->epsilon, args->casting));
    LIGER_TRY(liger_check_float(x, names->x));
    LIGER_TRY(check_cols(x, names->x));
    LIGER_TRY(check_weight(weight, x, names->weight));
    const liger_dtype t = (liger_dtype)x->dtype;
    const bool none = args->casting == LIGER_CAST_NONE;
    *problem = (struct rms_norm_forward_problem){
        .dtype = t,
        .weight_dtype = (liger_dtype)(weight->data ? weight->dtype : x->dtype),
        .casting = args->casting,
        .rows = liger_tensor_rows(x),
        .cols = liger_tensor_cols(x),
        .weight = weight->data,
        .rstd = args->rstd.data,
        .epsilon = none ? f32_round_to(t, args->epsilon) : args->epsilon,
        .offset = none ? f32_round_to(t, args->offset) : args->offset,
    };
    LIGER_TRY(liger_fold_rows(x, names->x, &problem->x));
    LIGER_TRY(liger_lower_twin(y, names->y, x, "x", &problem->y));
    if (args->rstd.data) LIGER_TRY(check_rstd(&args->rstd, x, names->rstd));
    LIGER_TRY(liger_check_overlap(y, names->y, x, "x", true));
    LIGER_TRY(liger_check_overlap(y, names->y, weight, "weight", false));
    LIGER_TRY(liger_check_overlap(&args->rstd, names->rstd, x, "x", false));
    LIGER_TRY(liger_check_overlap(&args->rstd, names->rstd, weight, "weight", false));
    return liger_check_overlap(&args->rstd, names->rstd, y, "y", false);
}

liger_status liger_rms_norm_forward(liger_context *context, const liger_rms_norm_forward_args *given,
                                    liger_stream stream) {
    liger_rms_norm_forward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "rms_norm_forward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "rms_norm_forward"));
    const liger_add_rms_norm_forward_args common = {
        .x = args.x,
        .weight = args.weight,
        .y = args.y,
        .rstd = args.rstd,
        .epsilon = args.epsilon,
        .offset = args.offset,
        .casting = args.casting,
    };
    struct rms_norm_forward_problem problem;
    LIGER_TRY(lower_forward(&plain_forward, &common, &problem));
    if (problem.rows == 0) return LIGER_OK;
    return context->kernels->rms_norm_forward(context, &problem, stream);
}

liger_status liger_add_rms_norm_forward(liger_context *context, const liger_add_rms_norm_forward_args *given,
                                        liger_stream stream) {
    liger_add_rms_norm_forward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "add_rms_norm_forward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "add_rms_norm_forward"));
    struct rms_norm_forward_problem problem;
    LIGER_TRY(lower_forward(&add_forward, &args, &problem));
    LIGER_TRY(liger_lower_twin(&args.residual, "add_rms_norm_forward: residual", &args.x, "x", &problem.residual));
    LIGER_TRY(liger_lower_twin(&args.sum, "add_rms_norm_forward: sum", &args.x, "x", &problem.sum));
    LIGER_TRY(liger_check_overlap(&args.y, "add_rms_norm_forward: y", &args.residual, "residual", true));
    LIGER_TRY(liger_check_overlap(&args.y, "add_rms_norm_forward: y", &args.sum, "sum", false));
    LIGER_TRY(liger_check_overlap(&args.sum, "add_rms_norm_forward: sum", &args.x, "x", true));
    LIGER_TRY(liger_check_overlap(&args.sum, "add_rms_norm_forward: sum", &args.residual, "residual", true));
    LIGER_TRY(liger_check_overlap(&args.sum, "add_rms_norm_forward: sum", &args.weight, "weight", false));
    LIGER_TRY(liger_check_overlap(&args.rstd, "add_rms_norm_forward: rstd", &args.sum, "sum", false));
    LIGER_TRY(liger_check_overlap(&args.rstd, "add_rms_norm_forward: rstd", &args.residual, "residual", false));
    if (problem.rows == 0) return LIGER_OK;
    return context->kernels->rms_norm_forward(context, &problem, stream);
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

static int64_t partials_of(const liger_context *context, const liger_tensor *x) {
    const int64_t row_bytes = liger_tensor_cols(x) * (int64_t)liger_dtype_size((liger_dtype)x->dtype);
    return rms_norm_partials(context->multiprocessors, liger_tensor_rows(x), row_bytes);
}

static size_t backward_workspace(const liger_context *context, const liger_tensor *x, const liger_tensor *dweight) {
    if (dweight->data == NULL) return 0;
    return (size_t)(partials_of(context, x) * liger_tensor_cols(x)) * sizeof(float);
}

/* dx may be dy; otherwise every output has memory of its own. */
static liger_status check_backward_overlaps(const struct backward_names *names,
                                            const liger_add_rms_norm_backward_args *args) {
    const struct liger_argument outputs[] = {{&args->dx, "dx"}, {&args->dweight, "dweight"}};
    const struct liger_argument inputs[] = {
        {&args->sum, names->x_alone}, {&args->weight, "weight"}, {&args->rstd, "rstd"}};
    LIGER_TRY(liger_check_overlap(&args->dx, names->dx, &args->dy, "dy", true));
    LIGER_TRY(liger_check_overlap(&args->dweight, names->dweight, &args->dy, "dy", false));
    return liger_check_apart(names->op, outputs, 2, inputs, 3);
}

/* `sum` is called x here: the tensor that was normalised. */
static liger_status lower_backward(const liger_context *context, const struct backward_names *names,
                                   const liger_add_rms_norm_backward_args *args,
                                   struct rms_norm_backward_problem *problem) {
    const liger_tensor *dy = &args->dy, *x = &args->sum, *weight = &args->weight, *dx = &args->dx;
    LIGER_TRY(check_scalars(names->op, 0, args->casting));
    LIGER_TRY(liger_check_float(x, names->x));
    LIGER_TRY(check_cols(x, names->x));
    LIGER_TRY(check_weight(weight, x, names->weight));
    *problem = (struct rms_norm_backward_problem){
        .dtype = (liger_dtype)x->dtype,
        .weight_dtype = (liger_dtype)(weight->data ? weight->dtype : LIGER_F32),
        .casting = args->casting,
        .rows = liger_tensor_rows(x),
        .cols = liger_tensor_cols(x),
        .weight = weight->data,
        .rstd = args->rstd.data,
        .dweight = args->dweight.data,
        .offset = args->offset,
        .partials = partials_of(context, x),
        .workspace = args->workspace,
    };
    LIGER_TRY(liger_fold_rows(x, names->x, &problem->x));
    LIGER_TRY(liger_lower_twin(dy, names->dy, x, names->x_alone, &problem->dy));
    LIGER_TRY(check_rstd(&args->rstd, x, names->rstd));
    if (dx->data) LIGER_TRY(liger_lower_twin(dx, names->dx, x, names->x_alone, &problem->dx));
    LIGER_TRY(liger_check_optional_vector(&args->dweight, names->dweight, (int)problem->weight_dtype, problem->cols));
    LIGER_TRY(check_backward_overlaps(names, args));
    return liger_check_workspace(args->workspace, args->workspace_bytes, backward_workspace(context, x, &args->dweight),
                                 names->op);
}

static liger_status run_backward(liger_context *context, const struct rms_norm_backward_problem *problem,
                                 liger_stream stream) {
    if (problem->dweight == NULL && (problem->dx.data == NULL || problem->rows == 0)) return LIGER_OK;
    return context->kernels->rms_norm_backward(context, problem, stream);
}

static void widen(const liger_rms_norm_backward_args *args, liger_add_rms_norm_backward_args *common) {
    *common = (liger_add_rms_norm_backward_args){
        .dy = args->dy,
        .sum = args->x,
        .weight = args->weight,
        .rstd = args->rstd,
        .dx = args->dx,
        .dweight = args->dweight,
        .offset = args->offset,
        .casting = args->casting,
        .workspace = args->workspace,
        .workspace_bytes = args->workspace_bytes,
    };
}

liger_status liger_rms_norm_backward(liger_context *context, const liger_rms_norm_backward_args *given,
                                     liger_stream stream) {
    liger_rms_norm_backward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "rms_norm_backward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "rms_norm_backward"));
    liger_add_rms_norm_backward_args common;
    widen(&args, &common);
    struct rms_norm_backward_problem problem;
    LIGER_TRY(lower_backward(context, &plain_backward, &common, &problem));
    return run_backward(context, &problem, stream);
}

liger_status liger_add_rms_norm_backward(liger_context *context, const liger_add_rms_norm_backward_args *given,
                                         liger_stream stream) {
    liger_add_rms_norm_backward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "add_rms_norm_backward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "add_rms_norm_backward"));
    struct rms_norm_backward_problem problem;
    LIGER_TRY(lower_backward(context, &add_backward, &args, &problem));
    if (args.dsum.data) {
        LIGER_TRY(liger_lower_twin(&args.dsum, "add_rms_norm_backward: dsum", &args.sum, "sum", &problem.dsum));
        LIGER_TRY(liger_check_overlap(&args.dx, "add_rms_norm_backward: dx", &args.dsum, "dsum", true));
        LIGER_TRY(liger_check_overlap(&args.dweight, "add_rms_norm_backward: dweight", &args.dsum, "dsum", false));
    }
    return run_backward(context, &problem, stream);
}

liger_status liger_rms_norm_backward_workspace(liger_context *context, const liger_rms_norm_backward_args *given,
                                               size_t *bytes) {
    liger_rms_norm_backward_args args;
    LIGER_REQUIRE(context != NULL && bytes != NULL, LIGER_ERR_ARGUMENT,
                  "rms_norm_backward_workspace: context or bytes is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "rms_norm_backward_workspace"));
    LIGER_TRY(liger_check_sizes(&args.x, "rms_norm_backward_workspace: x"));
    *bytes = backward_workspace(context, &args.x, &args.dweight);
    return LIGER_OK;
}

liger_status liger_add_rms_norm_backward_workspace(liger_context *context,
                                                   const liger_add_rms_norm_backward_args *given, size_t *bytes) {
    liger_add_rms_norm_backward_args args;
    LIGER_REQUIRE(context != NULL && bytes != NULL, LIGER_ERR_ARGUMENT,
                  "add_rms_norm_backward_workspace: context or bytes is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "add_rms_norm_backward_workspace"));
    LIGER_TRY(liger_check_sizes(&args.sum, "add_rms_norm_backward_workspace: sum"));
    *bytes = backward_workspace(context, &args.sum, &args.dweight);
    return LIGER_OK;
}
