/* linear_cross_entropy.c - a composite: the chunk loop of chunk/linear_loss.c with cross entropy as its head.
 *
 * It has no kernels of its own. Counts are taken over the whole batch first, so that a chunk's gradient is final when it
 * is made; the row results of all chunks are reduced once, at the end. */
#include "liger/ops/linear_cross_entropy/linear_cross_entropy.h"

#include <math.h>

#include "liger/chunk/linear_loss.h"
#include "liger/core/args.h"
#include "liger/core/check.h"
#include "liger/ops/cross_entropy/cross_entropy_problem.h"
#include "liger/ops/gemm/gemm_problem.h"

typedef liger_linear_cross_entropy_forward_args forward_args;

/* ---- workspace: counts, row results, then the scratch of the chunk loop ----------------------------------------- */

struct layout {
    size_t loss, z_loss, accuracy, loop, bytes;
};

static size_t reserve(size_t *bytes, size_t wanted) {
    const size_t offset = *bytes;
    *bytes += (wanted + 255) / 256 * 256;
    return offset;
}

static struct layout layout_of(const liger_context *context, const forward_args *args) {
    const size_t row_bytes = (size_t)liger_tensor_rows(&args->x) * sizeof(float);
    const int64_t chunk_rows = args->logits.ndim == 2 ? args->logits.shape[0] : 0;
    struct layout layout = {.bytes = 256};
    layout.loss = reserve(&layout.bytes, args->loss.data ? row_bytes : 0);
    layout.z_loss = reserve(&layout.bytes, args->z_loss.data ? row_bytes : 0);
    layout.accuracy = reserve(&layout.bytes, args->accuracy.data ? row_bytes : 0);
    layout.loop = reserve(&layout.bytes, linear_loss_workspace(context, chunk_rows, liger_tensor_rows(&args->weight),
                                                               args->dbias.data != NULL));
    return layout;
}

static struct cross_entropy_counts *counts_of(const forward_args *args) {
    return args->counts.data ? args->counts.data : args->workspace;
}

/* ---- checks, in the order of the contract ----------------------------------------------------------------------- */

#define OP "linear_cross_entropy: "

static liger_status check_matrix(const liger_tensor *tensor, const char *what, int64_t rows, int64_t cols) {
    LIGER_REQUIRE(tensor->ndim == 2, LIGER_ERR_SHAPE, "%s has %d dimensions, but must have 2", what, tensor->ndim);
    LIGER_REQUIRE(tensor->shape[0] == rows, LIGER_ERR_SHAPE, "%s: shape[0] is %lld, but must be %lld", what,
                  (long long)tensor->shape[0], (long long)rows);
    LIGER_REQUIRE(tensor->shape[1] == cols, LIGER_ERR_SHAPE, "%s: shape[1] is %lld, but must be %lld", what,
                  (long long)tensor->shape[1], (long long)cols);
    LIGER_REQUIRE(cols <= 1 || tensor->stride[1] == 1, LIGER_ERR_LAYOUT,
                  "%s: the last dimension must be contiguous, but its stride is %lld and not 1", what,
                  (long long)tensor->stride[1]);
    LIGER_REQUIRE(rows <= 1 || tensor->stride[0] >= cols, LIGER_ERR_LAYOUT,
                  "%s: rows overlap: stride[0] is %lld, but a row has %lld elements", what,
                  (long long)tensor->stride[0], (long long)cols);
    return LIGER_OK;
}

static liger_status check_operands(const forward_args *args) {
    const liger_tensor *x = &args->x, *weight = &args->weight, *bias = &args->bias;
    LIGER_TRY(liger_check_float(x, OP "x"));
    LIGER_TRY(liger_check_dtype(weight, OP "weight", x->dtype));
    LIGER_REQUIRE(weight->ndim == 2, LIGER_ERR_SHAPE, OP "weight has %d dimensions, but must have 2", weight->ndim);
    LIGER_REQUIRE(weight->shape[0] > 0 && weight->shape[1] > 0, LIGER_ERR_SHAPE,
                  OP "weight is %lld x %lld, but no size may be 0 (is it a shard that was not gathered?)",
                  (long long)weight->shape[0], (long long)weight->shape[1]);
    LIGER_TRY(check_matrix(x, OP "x", x->shape[0], weight->shape[1]));
    LIGER_TRY(liger_check_contiguous(weight, OP "weight"));
    if (bias->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype(bias, OP "bias", x->dtype));
    return liger_check_vector(bias, OP "bias", weight->shape[0]);
}

static liger_status check_targets(const forward_args *args) {
    const liger_tensor *target = &args->target, *upstream = &args->upstream;
    const int64_t rows = args->x.shape[0], vocab = args->weight.shape[0];
    LIGER_TRY(liger_check_present(target, OP "target"));
    LIGER_REQUIRE(target->dtype == LIGER_I32 || target->dtype == LIGER_I64, LIGER_ERR_DTYPE,
                  OP "target is %s, but i32 and i64 are supported", liger_dtype_name(target->dtype));
    LIGER_TRY(liger_check_vector(target, OP "target", rows));
    if (args->class_weight.data) {
        LIGER_TRY(liger_check_dtype(&args->class_weight, OP "class_weight", LIGER_F32));
        LIGER_TRY(liger_check_vector(&args->class_weight, OP "class_weight", vocab));
    }
    if (upstream->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype(upstream, OP "upstream", LIGER_F32));
    if (liger_tensor_elements(upstream) == 1 && upstream->ndim <= 1) return LIGER_OK;
    return liger_check_vector(upstream, OP "upstream", rows);
}

static liger_status check_logits(const forward_args *args) {
    const liger_tensor *logits = &args->logits;
    if (args->x.shape[0] == 0) return liger_check_sizes(logits, OP "logits"); /* not used, but looked at below */
    LIGER_TRY(liger_check_dtype(logits, OP "logits", args->x.dtype));
    LIGER_REQUIRE(logits->ndim == 2 && logits->shape[0] > 0, LIGER_ERR_SHAPE,
                  OP "logits must be [chunk, vocab] with 1 or more rows, but has %d dimensions and %lld rows",
                  logits->ndim, (long long)(logits->ndim ? logits->shape[0] : 0));
    return check_matrix(logits, OP "logits", logits->shape[0], args->weight.shape[0]);
}

static liger_status check_result(const liger_tensor *result, const char *what, const forward_args *args, int dtype) {
    if (result->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype_or_f32(result, what, dtype));
    if (args->reduction == LIGER_REDUCTION_NONE) return liger_check_vector(result, what, args->x.shape[0]);
    LIGER_REQUIRE(liger_tensor_elements(result) == 1, LIGER_ERR_SHAPE,
                  "%s has %lld elements, but must have 1 unless reduction is NONE", what,
                  (long long)liger_tensor_elements(result));
    return LIGER_OK;
}

static liger_status check_results(const forward_args *args) {
    LIGER_TRY(check_result(&args->loss, OP "loss", args, args->x.dtype));
    LIGER_TRY(check_result(&args->z_loss, OP "z_loss", args, args->x.dtype));
    LIGER_TRY(check_result(&args->accuracy, OP "accuracy", args, LIGER_F32));
    if (args->predicted.data) {
        LIGER_TRY(liger_check_dtype(&args->predicted, OP "predicted", LIGER_I64));
        LIGER_TRY(liger_check_vector(&args->predicted, OP "predicted", args->x.shape[0]));
    }
    if (args->counts.data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype(&args->counts, OP "counts", LIGER_F32));
    return liger_check_vector(&args->counts, OP "counts", 4);
}

static liger_status check_gradients(const forward_args *args) {
    const liger_tensor *dx = &args->dx, *dweight = &args->dweight, *dbias = &args->dbias;
    const int64_t rows = args->x.shape[0], hidden = args->x.shape[1], vocab = args->weight.shape[0];
    if (dx->data) {
        LIGER_TRY(liger_check_dtype(dx, OP "dx", args->x.dtype));
        LIGER_TRY(check_matrix(dx, OP "dx", rows, hidden));
    }
    if (dweight->data) {
        LIGER_TRY(liger_check_dtype_or_f32(dweight, OP "dweight", args->x.dtype));
        LIGER_TRY(check_matrix(dweight, OP "dweight", vocab, hidden));
        LIGER_TRY(liger_check_contiguous(dweight, OP "dweight"));
    }
    if (dbias->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype(dbias, OP "dbias", LIGER_F32));
    return liger_check_vector(dbias, OP "dbias", vocab);
}

/* Every output against every input and every other output. */
static liger_status check_overlaps(const forward_args *args) {
    const struct {
        const liger_tensor *tensor;
        const char *what;
    } outputs[] = {
        {&args->logits, OP "logits"},     {&args->dx, OP "dx"},         {&args->dweight, OP "dweight"},
        {&args->dbias, OP "dbias"},       {&args->loss, OP "loss"},     {&args->z_loss, OP "z_loss"},
        {&args->accuracy, OP "accuracy"}, {&args->counts, OP "counts"}, {&args->predicted, OP "predicted"},
    };
    const liger_tensor *inputs[] = {&args->x,      &args->weight,       &args->bias,
                                    &args->target, &args->class_weight, &args->upstream};
    static const char *const names[] = {"x", "weight", "bias", "target", "class_weight", "upstream"};
    enum { OUTPUTS = sizeof outputs / sizeof outputs[0], INPUTS = sizeof inputs / sizeof inputs[0] };
    for (int o = 0; o < OUTPUTS; o++) {
        for (int i = 0; i < INPUTS; i++)
            LIGER_TRY(liger_check_overlap(outputs[o].tensor, outputs[o].what, inputs[i], names[i], false));
        for (int other = 0; other < o; other++)
            LIGER_TRY(liger_check_overlap(outputs[o].tensor, outputs[o].what, outputs[other].tensor,
                                          outputs[other].what + sizeof(OP) - 1, false));
    }
    return LIGER_OK;
}

static liger_status check_options(const forward_args *args) {
    LIGER_REQUIRE(args->label_smoothing >= 0 && args->label_smoothing <= 1, LIGER_ERR_ARGUMENT,
                  OP "label_smoothing is %g, but must be in [0, 1]", (double)args->label_smoothing);
    LIGER_REQUIRE(isfinite(args->lse_square_scale), LIGER_ERR_ARGUMENT, OP "lse_square_scale is %g, but must be finite",
                  (double)args->lse_square_scale);
    LIGER_REQUIRE(args->softcap >= 0 && isfinite(args->softcap), LIGER_ERR_ARGUMENT,
                  OP "softcap is %g, but must be greater than 0 (or 0 for none)", (double)args->softcap);
    LIGER_REQUIRE(args->reduction >= LIGER_REDUCTION_NONE && args->reduction <= LIGER_REDUCTION_SUM, LIGER_ERR_ARGUMENT,
                  OP "reduction is %d, but must be in [%d, %d]", args->reduction, LIGER_REDUCTION_NONE,
                  LIGER_REDUCTION_SUM);
    LIGER_REQUIRE((args->token_scaling | 1) == 1 && (args->raw_gradient | 1) == 1, LIGER_ERR_ARGUMENT,
                  OP "token_scaling and raw_gradient are %d and %d, but must be 0 or 1", args->token_scaling,
                  args->raw_gradient);
    return LIGER_OK;
}

static liger_status check(const liger_context *context, const forward_args *args) {
    LIGER_TRY(check_operands(args));
    LIGER_TRY(check_targets(args));
    LIGER_TRY(check_logits(args));
    LIGER_TRY(check_options(args));
    LIGER_TRY(check_results(args));
    LIGER_TRY(check_gradients(args));
    LIGER_TRY(check_overlaps(args));
    return liger_check_workspace(args->workspace, args->workspace_bytes, layout_of(context, args).bytes,
                                 "linear_cross_entropy");
}

/* ---- the steps -------------------------------------------------------------------------------------------------- */

static liger_status count(liger_context *context, const forward_args *args, liger_stream stream) {
    const struct cross_entropy_count_problem problem = {
        .target = args->target.data,
        .target_dtype = (liger_dtype)args->target.dtype,
        .rows = args->x.shape[0],
        .vocab = args->weight.shape[0],
        .ignore_index = args->ignore_index,
        .weight = args->class_weight.data,
        .counts = counts_of(args),
        .op = "linear_cross_entropy",
    };
    return context->kernels->cross_entropy_count(context, &problem, stream);
}

struct head_state {
    const forward_args *args;
    struct cross_entropy_rows_problem whole; /* row pointers of the whole batch; a chunk's are offset from them */
    bool gradient;
};

static liger_status head(liger_context *context, void *opaque, int64_t first, int64_t rows, void *logits,
                         int64_t stride, liger_stream stream) {
    const struct head_state *state = opaque;
    struct cross_entropy_rows_problem problem = state->whole;
    problem.rows = rows;
    problem.logits = logits;
    problem.logits_stride = problem.dlogits_stride = stride;
    problem.dlogits = state->gradient ? logits : NULL;
    problem.target = (const char *)problem.target + first * (int64_t)liger_dtype_size(problem.target_dtype);
    if (problem.upstream) problem.upstream += first * problem.upstream_stride;
    if (problem.loss) problem.loss += first;
    if (problem.z_loss) problem.z_loss += first;
    if (problem.accuracy) problem.accuracy += first;
    if (problem.predicted) problem.predicted += first;
    return context->kernels->cross_entropy_rows(context, &problem, stream);
}

static float *row_array(const forward_args *args, const liger_tensor *result, size_t offset) {
    return result->data ? (float *)((char *)args->workspace + offset) : NULL;
}

static struct head_state head_of(const forward_args *args, const struct layout *layout) {
    return (struct head_state){
        .args = args,
        .gradient = args->dx.data || args->dweight.data || args->dbias.data,
        .whole =
            {
                .dtype = (liger_dtype)args->x.dtype,
                .target_dtype = (liger_dtype)args->target.dtype,
                .vocab = args->weight.shape[0],
                .target = args->target.data,
                .weight = args->class_weight.data,
                .counts = counts_of(args),
                .ignore_index = args->ignore_index,
                .label_smoothing = args->label_smoothing,
                .lse_square_scale = args->lse_square_scale,
                .softcap = args->softcap,
                .mean = args->reduction == LIGER_REDUCTION_MEAN,
                .raw_gradient = args->raw_gradient != 0,
                .token_scaling = args->token_scaling != 0,
                .upstream = args->upstream.data,
                .upstream_stride = args->upstream.data && liger_tensor_elements(&args->upstream) > 1,
                .loss = row_array(args, &args->loss, layout->loss),
                .z_loss = row_array(args, &args->z_loss, layout->z_loss),
                .accuracy = row_array(args, &args->accuracy, layout->accuracy),
                .predicted = args->predicted.data,
            },
    };
}

static liger_status run_chunks(liger_context *context, const forward_args *args, const struct layout *layout,
                               liger_stream stream) {
    struct head_state state = head_of(args, layout);
    const struct linear_loss loss = {
        .dtype = (liger_dtype)args->x.dtype,
        .rows = args->x.shape[0],
        .hidden = args->x.shape[1],
        .vocab = args->weight.shape[0],
        .x = args->x.data,
        .x_stride = args->x.stride[0],
        .weight = args->weight.data,
        .bias = args->bias.data,
        .logits = args->logits.data,
        .logits_stride = args->logits.stride[0],
        .chunk_rows = args->logits.shape[0],
        .dx = args->dx.data,
        .dx_stride = args->dx.stride[0],
        .dweight = args->dweight.data,
        .dweight_dtype = (liger_dtype)args->dweight.dtype,
        .dbias = args->dbias.data,
        .workspace = (char *)args->workspace + layout->loop,
        .workspace_bytes = args->workspace_bytes - layout->loop,
        .head = head,
        .head_state = &state,
    };
    return linear_loss_run(context, &loss, stream);
}

static liger_status reduce(liger_context *context, const forward_args *args, const struct layout *layout,
                           liger_stream stream) {
    if (!args->loss.data && !args->z_loss.data && !args->accuracy.data) return LIGER_OK;
    const struct cross_entropy_reduce_problem problem = {
        .rows = args->x.shape[0],
        .counts = counts_of(args),
        .loss = row_array(args, &args->loss, layout->loss),
        .z_loss = row_array(args, &args->z_loss, layout->z_loss),
        .accuracy = row_array(args, &args->accuracy, layout->accuracy),
        .loss_out = args->loss.data,
        .z_loss_out = args->z_loss.data,
        .accuracy_out = args->accuracy.data,
        .loss_dtype = (liger_dtype)args->loss.dtype,
        .z_loss_dtype = (liger_dtype)args->z_loss.dtype,
        .unreduced = args->reduction == LIGER_REDUCTION_NONE,
    };
    return context->kernels->cross_entropy_reduce(context, &problem, stream);
}

/* No rows, no chunk: the gradients of the parameters are zero, which is what a product over no rows leaves. */
static liger_status zero_parameters(liger_context *context, const forward_args *args, liger_stream stream) {
    struct {
        void *data;
        liger_dtype dtype;
        int64_t count;
    } const outputs[] = {
        {args->dweight.data, (liger_dtype)args->dweight.dtype, args->weight.shape[0] * args->weight.shape[1]},
        {args->dbias.data, LIGER_F32, args->weight.shape[0]},
    };
    for (int i = 0; i < 2; i++) {
        if (outputs[i].data == NULL) continue;
        const struct gemm_problem zero = {
            .dtype = outputs[i].dtype,
            .c_dtype = outputs[i].dtype,
            .m = 1,
            .n = outputs[i].count,
            .k = 0,
            .lda = 1,
            .ldb = 1,
            .ldc = outputs[i].count,
            .c = outputs[i].data,
        };
        LIGER_TRY(context->kernels->gemm(context, &zero, stream));
    }
    return LIGER_OK;
}

static liger_status run(liger_context *context, const forward_args *args, liger_stream stream) {
    LIGER_TRY(check(context, args));
    const struct layout layout = layout_of(context, args);
    LIGER_TRY(count(context, args, stream));
    if (args->x.shape[0] == 0) LIGER_TRY(zero_parameters(context, args, stream));
    else LIGER_TRY(run_chunks(context, args, &layout, stream));
    return reduce(context, args, &layout, stream);
}

/* ---- the doors -------------------------------------------------------------------------------------------------- */

liger_status liger_linear_cross_entropy_forward(liger_context *context, const forward_args *given,
                                                liger_stream stream) {
    forward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, OP "context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "linear_cross_entropy_forward"));
    return run(context, &args, stream);
}

liger_status liger_linear_cross_entropy_forward_workspace(liger_context *context, const forward_args *given,
                                                          size_t *bytes) {
    forward_args args;
    LIGER_REQUIRE(context != NULL && bytes != NULL, LIGER_ERR_ARGUMENT, OP "context or bytes is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "linear_cross_entropy_forward_workspace"));
    LIGER_TRY(liger_check_sizes(&args.x, OP "x"));
    LIGER_TRY(liger_check_sizes(&args.weight, OP "weight"));
    LIGER_TRY(liger_check_sizes(&args.logits, OP "logits"));
    *bytes = layout_of(context, &args).bytes;
    return LIGER_OK;
}

liger_status liger_linear_cross_entropy_forward_chunk_rows(liger_context *context, const forward_args *given,
                                                           size_t *rows) {
    forward_args args;
    LIGER_REQUIRE(context != NULL && rows != NULL, LIGER_ERR_ARGUMENT, OP "context or rows is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "linear_cross_entropy_forward_chunk_rows"));
    LIGER_TRY(check_operands(&args));
    *rows = (size_t)linear_loss_chunk_rows(context, (liger_dtype)args.x.dtype, args.x.shape[0], args.x.shape[1],
                                           args.weight.shape[0]);
    return LIGER_OK;
}

static forward_args widen(const liger_linear_cross_entropy_backward_args *args) {
    return (forward_args){
        .x = args->x,
        .weight = args->weight,
        .bias = args->bias,
        .target = args->target,
        .class_weight = args->class_weight,
        .upstream = args->upstream,
        .logits = args->logits,
        .dx = args->dx,
        .dweight = args->dweight,
        .dbias = args->dbias,
        .ignore_index = args->ignore_index,
        .label_smoothing = args->label_smoothing,
        .lse_square_scale = args->lse_square_scale,
        .softcap = args->softcap,
        .reduction = args->reduction,
        .token_scaling = args->token_scaling,
        .workspace = args->workspace,
        .workspace_bytes = args->workspace_bytes,
    };
}

liger_status liger_linear_cross_entropy_backward(liger_context *context,
                                                 const liger_linear_cross_entropy_backward_args *given,
                                                 liger_stream stream) {
    liger_linear_cross_entropy_backward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, OP "context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "linear_cross_entropy_backward"));
    const forward_args common = widen(&args);
    return run(context, &common, stream);
}

liger_status liger_linear_cross_entropy_backward_workspace(liger_context *context,
                                                           const liger_linear_cross_entropy_backward_args *given,
                                                           size_t *bytes) {
    liger_linear_cross_entropy_backward_args args;
    LIGER_REQUIRE(context != NULL && bytes != NULL, LIGER_ERR_ARGUMENT, OP "context or bytes is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "linear_cross_entropy_backward_workspace"));
    const forward_args common = widen(&args);
    LIGER_TRY(liger_check_sizes(&args.x, OP "x"));
    LIGER_TRY(liger_check_sizes(&args.weight, OP "weight"));
    LIGER_TRY(liger_check_sizes(&args.logits, OP "logits"));
    *bytes = layout_of(context, &common).bytes;
    return LIGER_OK;
}
