/* cross_entropy.c - the door of cross entropy: check once, lower, then three slots: count, rows, reduce.
 *
 * Device-free: counts and row results live in the caller's workspace, so that nothing waits for the device. */
#include "liger/ops/cross_entropy/cross_entropy.h"

#include "liger/core/args.h"
#include "liger/core/check.h"
#include "liger/ops/cross_entropy/cross_entropy_loss_problem.h"

typedef liger_cross_entropy_forward_args forward_args;

static struct cross_entropy_loss_problem loss_of(const char *op, const forward_args *args) {
    return (struct cross_entropy_loss_problem){
        .op = op,
        .weight_name = "weight",
        .dtype = (liger_dtype)args->logits.dtype,
        .rows = liger_tensor_rows(&args->logits),
        .vocab = liger_tensor_cols(&args->logits),
        .target = &args->target,
        .weight = &args->weight,
        .upstream = &args->upstream,
        .loss = &args->loss,
        .z_loss = &args->z_loss,
        .accuracy = &args->accuracy,
        .predicted = &args->predicted,
        .ignore_index = args->ignore_index,
        .label_smoothing = args->label_smoothing,
        .lse_square_scale = args->lse_square_scale,
        .softcap = args->softcap,
        .reduction = args->reduction,
        .counts = args->workspace,
        .workspace = args->workspace,
    };
}

/* ---- checks, in the order of the contract ------------------------------------------------------------------------- */

static liger_status check_logits(const char *op, const liger_tensor *logits) {
    struct liger_name name;
    LIGER_TRY(liger_check_float(logits, liger_name_of(&name, op, "logits")));
    LIGER_REQUIRE(logits->ndim == 2, LIGER_ERR_SHAPE, "%s: logits has %d dimensions, but must have 2", op,
                  logits->ndim);
    LIGER_REQUIRE(logits->shape[1] > 0, LIGER_ERR_SHAPE, "%s: logits.shape[1] is 0, but must be 1 or more", op);
    LIGER_REQUIRE(logits->shape[1] == 1 || logits->stride[1] == 1, LIGER_ERR_LAYOUT,
                  "%s: logits.stride[1] is %lld, but the last dimension must be contiguous (1)", op,
                  (long long)logits->stride[1]);
    return LIGER_OK;
}

static liger_status check_dlogits(const char *op, const forward_args *args) {
    struct liger_name name;
    const liger_tensor *dlogits = &args->dlogits, *logits = &args->logits;
    if (dlogits->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype(dlogits, liger_name_of(&name, op, "dlogits"), logits->dtype));
    LIGER_TRY(liger_check_same_shape(dlogits, name.text, logits, "logits"));
    LIGER_REQUIRE(dlogits->shape[1] == 1 || dlogits->stride[1] == 1, LIGER_ERR_LAYOUT,
                  "%s: stride[1] is %lld, but the last dimension must be contiguous (1)", name.text,
                  (long long)dlogits->stride[1]);
    LIGER_TRY(liger_check_overlap(dlogits, name.text, logits, "logits", true));
    LIGER_TRY(liger_check_overlap(dlogits, name.text, &args->target, "target", false));
    LIGER_TRY(liger_check_overlap(dlogits, name.text, &args->weight, "weight", false));
    return liger_check_overlap(dlogits, name.text, &args->upstream, "upstream", false);
}

static liger_status check_result_overlaps(const char *op, const forward_args *args) {
    const struct liger_argument results[] = {
        {&args->loss, "loss"},
        {&args->z_loss, "z_loss"},
        {&args->accuracy, "accuracy"},
        {&args->predicted, "predicted"},
    };
    const struct liger_argument others[] = {
        {&args->logits, "logits"}, {&args->dlogits, "dlogits"},   {&args->target, "target"},
        {&args->weight, "weight"}, {&args->upstream, "upstream"},
    };
    return liger_check_apart(op, results, 4, others, 5);
}

static liger_status check(const struct cross_entropy_loss_problem *loss, const forward_args *args) {
    LIGER_TRY(cross_entropy_check_targets(loss));
    LIGER_TRY(check_dlogits(loss->op, args));
    LIGER_TRY(cross_entropy_check_results(loss));
    LIGER_TRY(check_result_overlaps(loss->op, args));
    return liger_check_workspace(args->workspace, args->workspace_bytes, cross_entropy_loss_workspace(loss), loss->op);
}

/* ---- the three steps ---------------------------------------------------------------------------------------------- */

static liger_status run_rows(liger_context *context, const struct cross_entropy_loss_problem *loss,
                             const forward_args *args, liger_stream stream) {
    struct cross_entropy_rows_problem problem = cross_entropy_rows_of(loss);
    problem.logits = args->logits.data;
    problem.logits_stride = args->logits.stride[0];
    problem.dlogits = args->dlogits.data;
    problem.dlogits_stride = args->dlogits.stride[0];
    return context->kernels->cross_entropy_rows(context, &problem, stream);
}

static liger_status run(liger_context *context, const char *op, const forward_args *args, liger_stream stream) {
    LIGER_TRY(
        cross_entropy_check_options(op, args->label_smoothing, args->lse_square_scale, args->softcap, args->reduction));
    LIGER_TRY(check_logits(op, &args->logits));
    const struct cross_entropy_loss_problem loss = loss_of(op, args);
    LIGER_TRY(check(&loss, args));
    LIGER_TRY(cross_entropy_run_count(context, &loss, stream));
    if (loss.rows > 0) LIGER_TRY(run_rows(context, &loss, args, stream));
    return cross_entropy_run_reduce(context, &loss, stream);
}

/* ---- the doors ---------------------------------------------------------------------------------------------------- */

static void widen(const liger_cross_entropy_backward_args *args, forward_args *common) {
    *common = (forward_args){
        .logits = args->logits,
        .target = args->target,
        .weight = args->weight,
        .upstream = args->upstream,
        .dlogits = args->dlogits,
        .ignore_index = args->ignore_index,
        .label_smoothing = args->label_smoothing,
        .lse_square_scale = args->lse_square_scale,
        .softcap = args->softcap,
        .reduction = args->reduction,
        .workspace = args->workspace,
        .workspace_bytes = args->workspace_bytes,
    };
}

liger_status liger_cross_entropy_forward(liger_context *context, const forward_args *given, liger_stream stream) {
    forward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "cross_entropy_forward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "cross_entropy_forward"));
    return run(context, "cross_entropy_forward", &args, stream);
}

liger_status liger_cross_entropy_backward(liger_context *context, const liger_cross_entropy_backward_args *given,
                                          liger_stream stream) {
    liger_cross_entropy_backward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "cross_entropy_backward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "cross_entropy_backward"));
    LIGER_TRY(liger_check_present(&args.dlogits, "cross_entropy_backward: dlogits"));
    forward_args common;
    widen(&args, &common);
    return run(context, "cross_entropy_backward", &common, stream);
}

liger_status liger_cross_entropy_forward_workspace(liger_context *context, const forward_args *given, size_t *bytes) {
    forward_args args;
    LIGER_REQUIRE(context != NULL && bytes != NULL, LIGER_ERR_ARGUMENT,
                  "cross_entropy_forward_workspace: context or bytes is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "cross_entropy_forward_workspace"));
    LIGER_TRY(liger_check_sizes(&args.logits, "cross_entropy_forward_workspace: logits"));
    LIGER_TRY(liger_check_sizes(&args.target, "cross_entropy_forward_workspace: target"));
    const struct cross_entropy_loss_problem loss = loss_of("cross_entropy_forward_workspace", &args);
    *bytes = cross_entropy_loss_workspace(&loss);
    return LIGER_OK;
}

liger_status liger_cross_entropy_backward_workspace(liger_context *context,
                                                    const liger_cross_entropy_backward_args *given, size_t *bytes) {
    liger_cross_entropy_backward_args args;
    LIGER_REQUIRE(context != NULL && bytes != NULL, LIGER_ERR_ARGUMENT,
                  "cross_entropy_backward_workspace: context or bytes is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "cross_entropy_backward_workspace"));
    *bytes = 256;
    return LIGER_OK;
}
