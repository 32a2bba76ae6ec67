/* cross_entropy.c - the door of cross entropy: check once, lower, then three slots: count, rows, reduce.
 *
 * Device-free: counts and row results live in the caller's workspace, so that nothing waits for the device. */
#include "liger/ops/cross_entropy/cross_entropy.h"

#include <math.h>

#include "liger/core/args.h"
#include "liger/core/check.h"
#include "liger/ops/cross_entropy/cross_entropy_problem.h"

/* ---- workspace: counts, then one f32 array of rows for each result that is asked for ------------------------------ */

struct layout {
    size_t loss, z_loss, accuracy, bytes;
};

static size_t reserve(size_t *bytes, bool wanted, int64_t rows) {
    const size_t offset = *bytes;
    if (wanted) *bytes += ((size_t)rows * sizeof(float) + 255) / 256 * 256;
    return offset;
}

static struct layout layout_of(const liger_cross_entropy_forward_args *args) {
    const int64_t rows = liger_tensor_rows(&args->logits);
    struct layout layout = {.bytes = 256};
    layout.loss = reserve(&layout.bytes, args->loss.data != NULL, rows);
    layout.z_loss = reserve(&layout.bytes, args->z_loss.data != NULL, rows);
    layout.accuracy = reserve(&layout.bytes, args->accuracy.data != NULL, rows);
    return layout;
}

/* ---- checks, in the order of the contract ------------------------------------------------------------------------- */

/* "op: argument", in a buffer of the caller's: both functions share the checks. */
struct name {
    char text[80];
};
static const char *name_of(struct name *name, const char *op, const char *argument) {
    size_t n = 0;
    for (const char *c = op; *c && n < 48; c++) name->text[n++] = *c;
    name->text[n++] = ':', name->text[n++] = ' ';
    for (const char *c = argument; *c && n < 79; c++) name->text[n++] = *c;
    name->text[n] = 0;
    return name->text;
}

static liger_status check_options(const char *op, const liger_cross_entropy_forward_args *args) {
    LIGER_REQUIRE(args->label_smoothing >= 0 && args->label_smoothing <= 1, LIGER_ERR_ARGUMENT,
                  "%s: label_smoothing is %g, but must be in [0, 1]", op, (double)args->label_smoothing);
    LIGER_REQUIRE(isfinite(args->lse_square_scale), LIGER_ERR_ARGUMENT,
                  "%s: lse_square_scale is %g, but must be finite", op, (double)args->lse_square_scale);
    LIGER_REQUIRE(args->softcap >= 0 && isfinite(args->softcap), LIGER_ERR_ARGUMENT,
                  "%s: softcap is %g, but must be greater than 0 (or 0 for none)", op, (double)args->softcap);
    LIGER_REQUIRE(args->reduction >= LIGER_REDUCTION_NONE && args->reduction <= LIGER_REDUCTION_SUM, LIGER_ERR_ARGUMENT,
                  "%s: reduction is %d, but must be in [%d, %d]", op, args->reduction, LIGER_REDUCTION_NONE,
                  LIGER_REDUCTION_SUM);
    return LIGER_OK;
}

static liger_status check_logits(const char *op, const liger_tensor *logits) {
    struct name name;
    LIGER_TRY(liger_check_float(logits, name_of(&name, op, "logits")));
    LIGER_REQUIRE(logits->ndim == 2, LIGER_ERR_SHAPE, "%s: logits has %d dimensions, but must have 2", op,
                  logits->ndim);
    LIGER_REQUIRE(logits->shape[1] > 0, LIGER_ERR_SHAPE, "%s: logits.shape[1] is 0, but must be 1 or more", op);
    LIGER_REQUIRE(logits->shape[1] == 1 || logits->stride[1] == 1, LIGER_ERR_LAYOUT,
                  "%s: logits.stride[1] is %lld, but the last dimension must be contiguous (1)", op,
                  (long long)logits->stride[1]);
    return LIGER_OK;
}

static liger_status check_target(const char *op, const liger_tensor *target, int64_t rows) {
    struct name name;
    LIGER_TRY(liger_check_present(target, name_of(&name, op, "target")));
    LIGER_REQUIRE(target->dtype == LIGER_I32 || target->dtype == LIGER_I64, LIGER_ERR_DTYPE,
                  "%s: target is %s, but i32 and i64 are supported", op, liger_dtype_name(target->dtype));
    return liger_check_vector(target, name.text, rows);
}

static liger_status check_weight(const char *op, const liger_tensor *weight, int64_t vocab) {
    struct name name;
    if (weight->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype(weight, name_of(&name, op, "weight"), LIGER_F32));
    return liger_check_vector(weight, name.text, vocab);
}

static liger_status check_upstream(const char *op, const liger_tensor *upstream, int64_t rows) {
    struct name name;
    if (upstream->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype(upstream, name_of(&name, op, "upstream"), LIGER_F32));
    if (liger_tensor_elements(upstream) == 1 && upstream->ndim <= 1) return LIGER_OK;
    return liger_check_vector(upstream, name.text, rows);
}

/* A result with one value, or one per row with reduction NONE. */
static liger_status check_result(const char *op, const char *argument, const liger_tensor *result, int32_t reduction,
                                 int64_t rows, int dtype) {
    struct name name;
    if (result->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype_or_f32(result, name_of(&name, op, argument), dtype));
    if (reduction == LIGER_REDUCTION_NONE) return liger_check_vector(result, name.text, rows);
    LIGER_REQUIRE(liger_tensor_elements(result) == 1, LIGER_ERR_SHAPE,
                  "%s has %lld elements, but must have 1 unless reduction is NONE", name.text,
                  (long long)liger_tensor_elements(result));
    return LIGER_OK;
}

static liger_status check_dlogits(const char *op, const liger_cross_entropy_forward_args *args) {
    struct name name;
    const liger_tensor *dlogits = &args->dlogits, *logits = &args->logits;
    if (dlogits->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype(dlogits, name_of(&name, op, "dlogits"), logits->dtype));
    LIGER_TRY(liger_check_same_shape(dlogits, name.text, logits, "logits"));
    LIGER_REQUIRE(dlogits->shape[1] == 1 || dlogits->stride[1] == 1, LIGER_ERR_LAYOUT,
                  "%s: stride[1] is %lld, but the last dimension must be contiguous (1)", name.text,
                  (long long)dlogits->stride[1]);
    LIGER_TRY(liger_check_overlap(dlogits, name.text, logits, "logits", true));
    LIGER_TRY(liger_check_overlap(dlogits, name.text, &args->target, "target", false));
    LIGER_TRY(liger_check_overlap(dlogits, name.text, &args->weight, "weight", false));
    return liger_check_overlap(dlogits, name.text, &args->upstream, "upstream", false);
}

static liger_status check_results(const char *op, const liger_cross_entropy_forward_args *args, int64_t rows) {
    struct name name;
    const int dtype = args->logits.dtype;
    LIGER_TRY(check_result(op, "loss", &args->loss, args->reduction, rows, dtype));
    LIGER_TRY(check_result(op, "z_loss", &args->z_loss, args->reduction, rows, dtype));
    LIGER_TRY(check_result(op, "accuracy", &args->accuracy, args->reduction, rows, LIGER_F32));
    if (args->predicted.data) {
        LIGER_TRY(liger_check_dtype(&args->predicted, name_of(&name, op, "predicted"), LIGER_I64));
        LIGER_TRY(liger_check_vector(&args->predicted, name.text, rows));
    }
    const liger_tensor *results[] = {&args->loss, &args->z_loss, &args->accuracy, &args->predicted};
    const char *names[] = {"loss", "z_loss", "accuracy", "predicted"};
    for (int i = 0; i < 4; i++) {
        name_of(&name, op, names[i]);
        LIGER_TRY(liger_check_overlap(results[i], name.text, &args->logits, "logits", false));
        LIGER_TRY(liger_check_overlap(results[i], name.text, &args->dlogits, "dlogits", false));
    }
    return LIGER_OK;
}

static liger_status check(const char *op, const liger_cross_entropy_forward_args *args) {
    LIGER_TRY(check_options(op, args));
    LIGER_TRY(check_logits(op, &args->logits));
    const int64_t rows = args->logits.shape[0], vocab = args->logits.shape[1];
    LIGER_TRY(check_target(op, &args->target, rows));
    LIGER_TRY(check_weight(op, &args->weight, vocab));
    LIGER_TRY(check_upstream(op, &args->upstream, rows));
    LIGER_TRY(check_dlogits(op, args));
    LIGER_TRY(check_results(op, args, rows));
    return liger_check_workspace(args->workspace, args->workspace_bytes, layout_of(args).bytes, op);
}

/* ---- the three steps ---------------------------------------------------------------------------------------------- */

static liger_status count(liger_context *context, const char *op, const liger_cross_entropy_forward_args *args,
                          liger_stream stream) {
    const struct cross_entropy_count_problem problem = {
        .target = args->target.data,
        .target_dtype = (liger_dtype)args->target.dtype,
        .rows = args->logits.shape[0],
        .vocab = args->logits.shape[1],
        .ignore_index = args->ignore_index,
        .weight = args->weight.data,
        .counts = args->workspace,
        .op = op,
    };
    return context->kernels->cross_entropy_count(context, &problem, stream);
}

static float *row_array(const liger_cross_entropy_forward_args *args, const liger_tensor *result, size_t offset) {
    return result->data ? (float *)((char *)args->workspace + offset) : NULL;
}

static liger_status rows(liger_context *context, const liger_cross_entropy_forward_args *args, liger_stream stream) {
    const struct layout layout = layout_of(args);
    const struct cross_entropy_rows_problem problem = {
        .dtype = (liger_dtype)args->logits.dtype,
        .target_dtype = (liger_dtype)args->target.dtype,
        .rows = args->logits.shape[0],
        .vocab = args->logits.shape[1],
        .logits = args->logits.data,
        .logits_stride = args->logits.stride[0],
        .target = args->target.data,
        .weight = args->weight.data,
        .counts = args->workspace,
        .ignore_index = args->ignore_index,
        .label_smoothing = args->label_smoothing,
        .lse_square_scale = args->lse_square_scale,
        .softcap = args->softcap,
        .mean = args->reduction == LIGER_REDUCTION_MEAN,
        .upstream = args->upstream.data,
        .upstream_stride = args->upstream.data && liger_tensor_elements(&args->upstream) > 1,
        .loss = row_array(args, &args->loss, layout.loss),
        .z_loss = row_array(args, &args->z_loss, layout.z_loss),
        .accuracy = row_array(args, &args->accuracy, layout.accuracy),
        .predicted = args->predicted.data,
        .dlogits = args->dlogits.data,
        .dlogits_stride = args->dlogits.stride[0],
    };
    return context->kernels->cross_entropy_rows(context, &problem, stream);
}

static liger_status reduce(liger_context *context, const liger_cross_entropy_forward_args *args, liger_stream stream) {
    const struct layout layout = layout_of(args);
    if (!args->loss.data && !args->z_loss.data && !args->accuracy.data) return LIGER_OK;
    const struct cross_entropy_reduce_problem problem = {
        .rows = args->logits.shape[0],
        .counts = args->workspace,
        .loss = row_array(args, &args->loss, layout.loss),
        .z_loss = row_array(args, &args->z_loss, layout.z_loss),
        .accuracy = row_array(args, &args->accuracy, layout.accuracy),
        .loss_out = args->loss.data,
        .z_loss_out = args->z_loss.data,
        .accuracy_out = args->accuracy.data,
        .loss_dtype = (liger_dtype)args->loss.dtype,
        .z_loss_dtype = (liger_dtype)args->z_loss.dtype,
        .unreduced = args->reduction == LIGER_REDUCTION_NONE,
    };
    return context->kernels->cross_entropy_reduce(context, &problem, stream);
}

static liger_status run(liger_context *context, const char *op, const liger_cross_entropy_forward_args *args,
                        liger_stream stream) {
    LIGER_TRY(check(op, args));
    LIGER_TRY(count(context, op, args, stream));
    if (args->logits.shape[0] > 0) LIGER_TRY(rows(context, args, stream));
    return reduce(context, args, stream);
}

/* ---- the doors ---------------------------------------------------------------------------------------------------- */

static void widen(const liger_cross_entropy_backward_args *args, liger_cross_entropy_forward_args *common) {
    *common = (liger_cross_entropy_forward_args){
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

liger_status liger_cross_entropy_forward(liger_context *context, const liger_cross_entropy_forward_args *given,
                                         liger_stream stream) {
    liger_cross_entropy_forward_args args;
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
    liger_cross_entropy_forward_args common;
    widen(&args, &common);
    return run(context, "cross_entropy_backward", &common, stream);
}

liger_status liger_cross_entropy_forward_workspace(liger_context *context,
                                                   const liger_cross_entropy_forward_args *given, size_t *bytes) {
    liger_cross_entropy_forward_args args;
    LIGER_REQUIRE(context != NULL && bytes != NULL, LIGER_ERR_ARGUMENT,
                  "cross_entropy_forward_workspace: context or bytes is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "cross_entropy_forward_workspace"));
    LIGER_TRY(liger_check_sizes(&args.logits, "cross_entropy_forward_workspace: logits"));
    LIGER_TRY(liger_check_sizes(&args.target, "cross_entropy_forward_workspace: target"));
    *bytes = layout_of(&args).bytes;
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
