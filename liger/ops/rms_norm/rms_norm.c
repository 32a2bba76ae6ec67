/* rms_norm.c - the door of RMSNorm and add+RMSNorm: check once, lower to a problem, call through the table. */
#include "liger/ops/rms_norm/rms_norm.h"

#include "liger/core/args.h"
#include "liger/core/check.h"
#include "liger/core/half.h"
#include "liger/ops/rms_norm/rms_norm_problem.h"

static liger_status check_scalars(const char *op, float epsilon, int32_t casting) {
    LIGER_REQUIRE(epsilon >= 0, LIGER_ERR_ARGUMENT, "%s: epsilon is %g, but must be 0 or more", op, (double)epsilon);
    LIGER_REQUIRE(casting >= LIGER_CAST_LLAMA && casting <= LIGER_CAST_NONE, LIGER_ERR_ARGUMENT,
                  "%s: casting is %d, but must be in [%d, %d]", op, casting, LIGER_CAST_LLAMA, LIGER_CAST_NONE);
    return LIGER_OK;
}

static liger_status check_cols(const liger_tensor *x, const char *op) {
    LIGER_REQUIRE(x->ndim >= 1, LIGER_ERR_SHAPE, "%s: x has 0 dimensions, but must have 1 to %d", op, LIGER_MAX_DIMS);
    LIGER_REQUIRE(liger_tensor_cols(x) > 0, LIGER_ERR_SHAPE, "%s: x.shape[%d] is 0, but must be 1 or more", op,
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
static liger_status lower_forward(const char *op, const liger_add_rms_norm_forward_args *args,
                                  struct rms_norm_forward_problem *problem) {
    const liger_tensor *x = &args->x, *weight = &args->weight, *y = &args->y;
    LIGER_TRY(check_scalars(op, args->epsilon, args->casting));
    LIGER_TRY(liger_check_float(x, "rms_norm_forward: x"));
    LIGER_TRY(check_cols(x, op));
    LIGER_TRY(check_weight(weight, x, "rms_norm_forward: weight"));
    *problem = (struct rms_norm_forward_problem){
        .dtype = (liger_dtype)x->dtype,
        .weight_dtype = (liger_dtype)(weight->data ? weight->dtype : x->dtype),
        .casting = args->casting,
        .rows = liger_tensor_rows(x),
        .cols = liger_tensor_cols(x),
        .weight = weight->data,
        .rstd = args->rstd.data,
        .epsilon =
            args->casting == LIGER_CAST_NONE ? f32_round_to((liger_dtype)x->dtype, args->epsilon) : args->epsilon,
        .offset = args->casting == LIGER_CAST_NONE ? f32_round_to((liger_dtype)x->dtype, args->offset) : args->offset,
    };
    LIGER_TRY(liger_fold_rows(x, "rms_norm_forward: x", &problem->x));
    LIGER_TRY(liger_lower_twin(y, "rms_norm_forward: y", x, "x", &problem->y));
    if (args->rstd.data) LIGER_TRY(check_rstd(&args->rstd, x, "rms_norm_forward: rstd"));
    LIGER_TRY(liger_check_overlap(y, "rms_norm_forward: y", x, "x", true));
    LIGER_TRY(liger_check_overlap(y, "rms_norm_forward: y", weight, "weight", false));
    LIGER_TRY(liger_check_overlap(&args->rstd, "rms_norm_forward: rstd", x, "x", false));
    LIGER_TRY(liger_check_overlap(&args->rstd, "rms_norm_forward: rstd", weight, "weight", false));
    return liger_check_overlap(&args->rstd, "rms_norm_forward: rstd", y, "y", false);
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
    LIGER_TRY(lower_forward("rms_norm_forward", &common, &problem));
    if (problem.rows == 0) return LIGER_OK;
    return context->kernels->rms_norm_forward(context, &problem, stream);
}

liger_status liger_add_rms_norm_forward(liger_context *context, const liger_add_rms_norm_forward_args *given,
                                        liger_stream stream) {
    liger_add_rms_norm_forward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "add_rms_norm_forward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "add_rms_norm_forward"));
    struct rms_norm_forward_problem problem;
    LIGER_TRY(lower_forward("add_rms_norm_forward", &args, &problem));
    LIGER_TRY(liger_lower_twin(&args.residual, "add_rms_norm_forward: residual", &args.x, "x", &problem.residual));
    LIGER_TRY(liger_lower_twin(&args.sum, "add_rms_norm_forward: sum", &args.x, "x", &problem.sum));
    LIGER_TRY(liger_check_overlap(&args.y, "add_rms_norm_forward: y", &args.residual, "residual", true));
    LIGER_TRY(liger_check_overlap(&args.y, "add_rms_norm_forward: y", &args.sum, "sum", false));
    LIGER_TRY(liger_check_overlap(&args.sum, "add_rms_norm_forward: sum", &args.x, "x", true));
    LIGER_TRY(liger_check_overlap(&args.sum, "add_rms_norm_forward: sum", &args.residual, "residual", true));
    LIGER_TRY(liger_check_overlap(&args.sum, "add_rms_norm_forward: sum", &args.weight, "weight", false));
    LIGER_TRY(liger_check_overlap(&args.rstd, "add_rms_norm_forward: rstd", &args.sum, "sum", false));
    if (problem.rows == 0) return LIGER_OK;
    return context->kernels->rms_norm_forward(context, &problem, stream);
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

static size_t backward_workspace(const liger_context *context, const liger_tensor *x, const liger_tensor *dweight) {
    if (dweight->data == NULL) return 0;
    const int64_t partials = rms_norm_partials(context->multiprocessors, liger_tensor_rows(x));
    return (size_t)(partials * liger_tensor_cols(x)) * sizeof(float);
}

/* `sum` is called x here: the tensor that was normalised. */
static liger_status lower_backward(const liger_context *context, const char *op,
                                   const liger_add_rms_norm_backward_args *args,
                                   struct rms_norm_backward_problem *problem) {
    const liger_tensor *dy = &args->dy, *x = &args->sum, *weight = &args->weight, *dx = &args->dx;
    LIGER_TRY(check_scalars(op, 0, args->casting));
    LIGER_TRY(liger_check_float(x, "rms_norm_backward: x"));
    LIGER_TRY(check_cols(x, op));
    LIGER_TRY(check_weight(weight, x, "rms_norm_backward: weight"));
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
        .partials = rms_norm_partials(context->multiprocessors, liger_tensor_rows(x)),
        .workspace = args->workspace,
    };
    LIGER_TRY(liger_fold_rows(x, "rms_norm_backward: x", &problem->x));
    LIGER_TRY(liger_lower_twin(dy, "rms_norm_backward: dy", x, "x", &problem->dy));
    LIGER_TRY(check_rstd(&args->rstd, x, "rms_norm_backward: rstd"));
    if (dx->data) LIGER_TRY(liger_lower_twin(dx, "rms_norm_backward: dx", x, "x", &problem->dx));
    LIGER_TRY(liger_check_optional_vector(&args->dweight, "rms_norm_backward: dweight", (int)problem->weight_dtype,
                                          problem->cols));
    LIGER_TRY(liger_check_overlap(dx, "rms_norm_backward: dx", dy, "dy", true));
    LIGER_TRY(liger_check_overlap(dx, "rms_norm_backward: dx", x, "x", false));
    LIGER_TRY(liger_check_overlap(dx, "rms_norm_backward: dx", weight, "weight", false));
    LIGER_TRY(liger_check_overlap(dx, "rms_norm_backward: dx", &args->rstd, "rstd", false));
    LIGER_TRY(liger_check_overlap(&args->dweight, "rms_norm_backward: dweight", x, "x", false));
    LIGER_TRY(liger_check_overlap(&args->dweight, "rms_norm_backward: dweight", dy, "dy", false));
    LIGER_TRY(liger_check_overlap(&args->dweight, "rms_norm_backward: dweight", dx, "dx", false));
    LIGER_TRY(liger_check_overlap(&args->dweight, "rms_norm_backward: dweight", weight, "weight", false));
    LIGER_TRY(liger_check_overlap(&args->dweight, "rms_norm_backward: dweight", &args->rstd, "rstd", false));
    return liger_check_workspace(args->workspace, args->workspace_bytes, backward_workspace(context, x, &args->dweight),
                                 op);
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
    LIGER_TRY(lower_backward(context, "rms_norm_backward", &common, &problem));
    return run_backward(context, &problem, stream);
}

liger_status liger_add_rms_norm_backward(liger_context *context, const liger_add_rms_norm_backward_args *given,
                                         liger_stream stream) {
    liger_add_rms_norm_backward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "add_rms_norm_backward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "add_rms_norm_backward"));
    struct rms_norm_backward_problem problem;
    LIGER_TRY(lower_backward(context, "add_rms_norm_backward", &args, &problem));
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
