/* linear_cross_entropy.c - a composite: the chunk loop of chunk/linear_loss.c with cross entropy as its head.
 *
 * It has no kernels of its own. Counts are taken over the whole batch first, so that a chunk's gradient is final when it
 * is made; the row results of all chunks are reduced once, at the end. */
#include "liger/ops/linear_cross_entropy/linear_cross_entropy.h"

#include "liger/chunk/linear_loss.h"
#include "liger/core/args.h"
#include "liger/core/check.h"
#include "liger/ops/cross_entropy/cross_entropy_loss_problem.h"
#include "liger/ops/gemm/gemm_problem.h"

typedef liger_linear_cross_entropy_forward_args forward_args;

static struct cross_entropy_loss_problem loss_of(const forward_args *args) {
    return (struct cross_entropy_loss_problem){
        .op = "linear_cross_entropy",
        .weight_name = "class_weight",
        .dtype = (liger_dtype)args->x.dtype,
        .rows = liger_tensor_rows(&args->x),
        .vocab = liger_tensor_rows(&args->weight),
        .target = &args->target,
        .weight = &args->class_weight,
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
        .counts = args->counts.data ? args->counts.data : args->workspace,
        .workspace = args->workspace,
    };
}

/* But for the workspace and the head. */
static struct linear_loss chunks_of(const forward_args *args) {
    return (struct linear_loss){
        .dtype = (liger_dtype)args->x.dtype,
        .rows = liger_tensor_rows(&args->x),
        .hidden = args->x.ndim == 2 ? args->x.shape[1] : 0,
        .vocab = liger_tensor_rows(&args->weight),
        .x = args->x.data,
        .x_stride = args->x.stride[0],
        .weight = args->weight.data,
        .bias = args->bias.data,
        .logits = args->logits.data,
        .logits_stride = args->logits.stride[0],
        .chunk_rows = args->logits.ndim == 2 ? args->logits.shape[0] : 0,
        .dx = args->dx.data,
        .dx_stride = args->dx.stride[0],
        .dweight = args->dweight.data,
        .dweight_dtype = (liger_dtype)args->dweight.dtype,
        .dbias = args->dbias.data,
    };
}

/* The scratch of the chunk loop lies behind what the loss needs. */
static size_t workspace_of(const liger_context *context, const forward_args *args,
                           const struct cross_entropy_loss_problem *loss) {
    const struct linear_loss chunks = chunks_of(args);
    return cross_entropy_loss_workspace(loss) + (linear_loss_workspace(context, &chunks) + 255) / 256 * 256;
}

/* ---- checks, in the order of the contract ----------------------------------------------------------------------- */

#define OP "linear_cross_entropy: "

static liger_status check_matrix(const liger_tensor *tensor, const char *what, int64_t rows, int64_t cols) {
    LIGER_REQUIRE(tensor->ndim == 2, LIGER_ERR_SHAPE, "%s has %d dimensions, but must have 2", what, tensor->ndim);
    LIGER_REQUIRE(tensor->shape[0] == rows, LIGER_ERR_SHAPE, "%s: shape[0] is %lld, but must be %lld", what,
                  (long long)tensor->shape[0], (long long)rows);
    LIGER_REQUIRE(tensor->shape[1] == cols, LIGER_ERR_SHAPE, "%s: shape[1] is %lld, but must be %lld", what,
                  (long long)tensor->shape[1], (long long)cols);
    LIGER_TRY(liger_check_last_contiguous(tensor, what));
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
    return liger_check_optional_vector(bias, OP "bias", x->dtype, weight->shape[0]);
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
    return liger_check_optional_vector(dbias, OP "dbias", LIGER_F32, vocab);
}

static liger_status check_overlaps(const forward_args *args) {
    const struct liger_argument outputs[] = {
        {&args->logits, "logits"},     {&args->dx, "dx"},         {&args->dweight, "dweight"},
        {&args->dbias, "dbias"},       {&args->loss, "loss"},     {&args->z_loss, "z_loss"},
        {&args->accuracy, "accuracy"}, {&args->counts, "counts"}, {&args->predicted, "predicted"},
    };
    const struct liger_argument inputs[] = {
        {&args->x, "x"},           {&args->weight, "weight"},     {&args->bias, "bias"},
        {&args->target, "target"}, {&args->upstream, "upstream"}, {&args->class_weight, "class_weight"},
    };
    return liger_check_apart("linear_cross_entropy", outputs, 9, inputs, 6);
}

static liger_status check_options(const forward_args *args) {
    LIGER_TRY(cross_entropy_check_options("linear_cross_entropy", args->label_smoothing, args->lse_square_scale,
                                          args->softcap, args->reduction));
    LIGER_REQUIRE((args->token_scaling | 1) == 1 && (args->raw_gradient | 1) == 1, LIGER_ERR_ARGUMENT,
                  OP "token_scaling and raw_gradient are %d and %d, but must be 0 or 1", args->token_scaling,
                  args->raw_gradient);
    return LIGER_OK;
}

/* But for the operands, without which there are no sizes to check the rest against. */
static liger_status check(const liger_context *context, const forward_args *args,
                          const struct cross_entropy_loss_problem *loss) {
    LIGER_TRY(cross_entropy_check_targets(loss));
    LIGER_TRY(check_logits(args));
    LIGER_TRY(check_options(args));
    LIGER_TRY(cross_entropy_check_results(loss));
    LIGER_TRY(liger_check_optional_vector(&args->counts, OP "counts", LIGER_F32, 4));
    LIGER_TRY(check_gradients(args));
    LIGER_TRY(check_overlaps(args));
    return liger_check_workspace(args->workspace, args->workspace_bytes, workspace_of(context, args, loss),
                                 "linear_cross_entropy");
}

/* ---- the steps -------------------------------------------------------------------------------------------------- */

struct head_state {
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

static struct head_state head_of(const forward_args *args, const struct cross_entropy_loss_problem *loss) {
    struct head_state state = {
        .whole = cross_entropy_rows_of(loss),
        .gradient = args->dx.data || args->dweight.data || args->dbias.data,
    };
    state.whole.raw_gradient = args->raw_gradient != 0;
    state.whole.token_scaling = args->token_scaling != 0;
    return state;
}

static liger_status run_chunks(liger_context *context, const forward_args *args,
                               const struct cross_entropy_loss_problem *loss, liger_stream stream) {
    struct head_state state = head_of(args, loss);
    const size_t before = cross_entropy_loss_workspace(loss);
    struct linear_loss chunks = chunks_of(args);
    chunks.workspace = (char *)args->workspace + before;
    chunks.workspace_bytes = args->workspace_bytes - before;
    chunks.head = head;
    chunks.head_state = &state;
    return linear_loss_run(context, &chunks, stream);
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
    LIGER_TRY(check_operands(args));
    const struct cross_entropy_loss_problem loss = loss_of(args);
    LIGER_TRY(check(context, args, &loss));
    LIGER_TRY(cross_entropy_run_count(context, &loss, stream));
    if (loss.rows == 0) LIGER_TRY(zero_parameters(context, args, stream));
    else LIGER_TRY(run_chunks(context, args, &loss, stream));
    return cross_entropy_run_reduce(context, &loss, stream);
}

/* ---- the doors -------------------------------------------------------------------------------------------------- */

static liger_status answer_workspace(const liger_context *context, const forward_args *args, size_t *bytes) {
    LIGER_TRY(liger_check_sizes(&args->x, OP "x"));
    LIGER_TRY(liger_check_sizes(&args->weight, OP "weight"));
    LIGER_TRY(liger_check_sizes(&args->logits, OP "logits"));
    const struct cross_entropy_loss_problem loss = loss_of(args);
    *bytes = workspace_of(context, args, &loss);
    return LIGER_OK;
}

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
    return answer_workspace(context, &args, bytes);
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
    return answer_workspace(context, &common, bytes);
}
