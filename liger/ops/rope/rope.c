/* rope.c - the door of RoPE: check once, lower to a problem, call through the table. Both directions are one map, so
 * they share everything but the names in the messages. */
#include "liger/ops/rope/rope.h"

#include <string.h>

#include "liger/core/args.h"
#include "liger/core/check.h"
#include "liger/ops/rope/rope_problem.h"

/* "function: argument" of each tensor, for the messages. */
struct names {
    const char *op, *q, *k, *cos, *sin, *q_out, *k_out;
};

static const struct names forward_names = {
    "rope_forward",      "rope_forward: q",     "rope_forward: k",     "rope_forward: cos",
    "rope_forward: sin", "rope_forward: q_out", "rope_forward: k_out",
};
static const struct names backward_names = {
    "rope_backward",      "rope_backward: dq",     "rope_backward: dk",     "rope_backward: cos",
    "rope_backward: sin", "rope_backward: dq_out", "rope_backward: dk_out",
};

static const char *argument_of(const char *what) { return strchr(what, ':') + 2; }

/* A dimension of one element has no stride to speak of, whatever number the caller has there. */
static int64_t stride_of(const liger_tensor *tensor, int d) { return tensor->shape[d] > 1 ? tensor->stride[d] : 0; }

/* Four dimensions, the last contiguous. */
static liger_status lower_heads(const liger_tensor *tensor, const char *what, struct rope_heads *heads) {
    LIGER_TRY(liger_check_last_contiguous(tensor, what));
    *heads = (struct rope_heads){
        .data = tensor->data,
        .batch_stride = stride_of(tensor, 0),
        .head_stride = stride_of(tensor, 1),
        .seq_stride = stride_of(tensor, 2),
    };
    return LIGER_OK;
}

static liger_status check_rank(const liger_tensor *tensor, const char *what) {
    LIGER_REQUIRE(tensor->ndim == 4, LIGER_ERR_SHAPE,
                  "%s has %d dimensions, but must have 4: batch, heads, sequence, head size", what, tensor->ndim);
    return LIGER_OK;
}

/* k agrees with q but in the number of heads. */
static liger_status check_k(const struct names *names, const liger_tensor *k, const liger_tensor *q) {
    LIGER_TRY(liger_check_dtype(k, names->k, q->dtype));
    LIGER_TRY(check_rank(k, names->k));
    for (int d = 0; d < 4; d++)
        LIGER_REQUIRE(d == 1 || k->shape[d] == q->shape[d], LIGER_ERR_SHAPE, "%s: shape[%d] is %lld, but %s has %lld",
                      names->k, d, (long long)k->shape[d], argument_of(names->q), (long long)q->shape[d]);
    return LIGER_OK;
}

/* cos or sin. */
static liger_status lower_table(const liger_tensor *table, const char *what, const liger_tensor *q, int64_t half,
                                int64_t *batch_stride, int64_t *seq_stride) {
    const int last = table->ndim - 1;
    LIGER_TRY(liger_check_dtype_or_f32(table, what, q->dtype));
    LIGER_REQUIRE(table->ndim == 2 || table->ndim == 3, LIGER_ERR_SHAPE,
                  "%s has %d dimensions, but must have 2 (sequence, angles) or 3 (batch, sequence, angles)", what,
                  table->ndim);
    LIGER_REQUIRE(table->ndim == 2 || table->shape[0] == 1 || table->shape[0] == q->shape[0], LIGER_ERR_SHAPE,
                  "%s: shape[0] is %lld, but must be 1 or the batch of %lld", what, (long long)table->shape[0],
                  (long long)q->shape[0]);
    LIGER_REQUIRE(table->shape[last - 1] == q->shape[2], LIGER_ERR_SHAPE,
                  "%s: shape[%d] is %lld, but must be the sequence length %lld", what, last - 1,
                  (long long)table->shape[last - 1], (long long)q->shape[2]);
    LIGER_REQUIRE(table->shape[last] >= half, LIGER_ERR_SHAPE,
                  "%s: shape[%d] is %lld, but must be rotary/2 = %lld or more", what, last,
                  (long long)table->shape[last], (long long)half);
    *batch_stride = table->ndim == 3 ? stride_of(table, 0) : 0;
    *seq_stride = stride_of(table, last - 1);
    return liger_check_last_contiguous(table, what);
}

static liger_status check_options(const char *op, const liger_rope_forward_args *args) {
    const int64_t dim = args->q.shape[3];
    LIGER_REQUIRE(args->rotary >= 0 && args->rotary <= dim && args->rotary % 2 == 0, LIGER_ERR_ARGUMENT,
                  "%s: rotary is %lld, but must be even and in [0, %lld]", op, (long long)args->rotary, (long long)dim);
    LIGER_REQUIRE(args->operand_dtype == LIGER_DTYPE_NONE || liger_is_float(args->operand_dtype), LIGER_ERR_ARGUMENT,
                  "%s: operand_dtype is %d, but must be 0 or one of f32 (%d), f16 (%d), bf16 (%d)", op,
                  args->operand_dtype, LIGER_F32, LIGER_F16, LIGER_BF16);
    return LIGER_OK;
}

static liger_status check_overlaps(const struct names *names, const liger_rope_forward_args *args) {
    const liger_tensor *q = &args->q, *k = &args->k, *q_out = &args->q_out, *k_out = &args->k_out;
    LIGER_TRY(liger_check_overlap(q_out, names->q_out, q, argument_of(names->q), true));
    LIGER_TRY(liger_check_overlap(q_out, names->q_out, k, argument_of(names->k), false));
    LIGER_TRY(liger_check_overlap(q_out, names->q_out, &args->cos, "cos", false));
    LIGER_TRY(liger_check_overlap(q_out, names->q_out, &args->sin, "sin", false));
    LIGER_TRY(liger_check_overlap(k_out, names->k_out, k, argument_of(names->k), true));
    LIGER_TRY(liger_check_overlap(k_out, names->k_out, q, argument_of(names->q), false));
    LIGER_TRY(liger_check_overlap(k_out, names->k_out, &args->cos, "cos", false));
    LIGER_TRY(liger_check_overlap(k_out, names->k_out, &args->sin, "sin", false));
    return liger_check_overlap(k_out, names->k_out, q_out, argument_of(names->q_out), false);
}

/* One of q_out, k_out: a twin of its input. */
static liger_status lower_output(const liger_tensor *out, const char *out_what, const liger_tensor *in,
                                 const char *in_what, struct rope_heads *heads) {
    LIGER_TRY(liger_check_dtype(out, out_what, in->dtype));
    LIGER_TRY(liger_check_same_shape(out, out_what, in, argument_of(in_what)));
    return lower_heads(out, out_what, heads);
}

static liger_status lower_k(const struct names *names, const liger_rope_forward_args *args,
                            struct rope_problem *problem) {
    const bool absent = args->k.data == NULL && args->k_out.data == NULL;
    if (absent) return LIGER_OK;
    LIGER_TRY(check_k(names, &args->k, &args->q));
    LIGER_TRY(lower_heads(&args->k, names->k, &problem->k));
    problem->k_heads = args->k.shape[1];
    return lower_output(&args->k_out, names->k_out, &args->k, names->k, &problem->k_out);
}

static liger_status lower(const struct names *names, const liger_rope_forward_args *args,
                          struct rope_problem *problem) {
    const liger_tensor *q = &args->q;
    LIGER_TRY(liger_check_float(q, names->q));
    LIGER_TRY(check_rank(q, names->q));
    LIGER_TRY(check_options(names->op, args));
    const bool rounds = args->operand_dtype != LIGER_DTYPE_NONE && args->operand_dtype != q->dtype;
    *problem = (struct rope_problem){
        .dtype = (liger_dtype)q->dtype,
        .table_dtype = (liger_dtype)args->cos.dtype,
        .operand_dtype = rounds ? (liger_dtype)args->operand_dtype : LIGER_F32,
        .inverse = names == &backward_names,
        .batch = q->shape[0],
        .q_heads = q->shape[1],
        .seq = q->shape[2],
        .dim = q->shape[3],
        .half = args->rotary / 2,
        .cos = args->cos.data,
        .sin = args->sin.data,
    };
    LIGER_TRY(lower_heads(q, names->q, &problem->q));
    LIGER_TRY(lower_k(names, args, problem));
    LIGER_TRY(
        lower_table(&args->cos, names->cos, q, problem->half, &problem->cos_batch_stride, &problem->cos_seq_stride));
    LIGER_TRY(
        lower_table(&args->sin, names->sin, q, problem->half, &problem->sin_batch_stride, &problem->sin_seq_stride));
    LIGER_REQUIRE(args->sin.dtype == args->cos.dtype, LIGER_ERR_DTYPE, "%s is %s, but cos is %s", names->sin,
                  liger_dtype_name(args->sin.dtype), liger_dtype_name(args->cos.dtype));
    LIGER_TRY(lower_output(&args->q_out, names->q_out, q, names->q, &problem->q_out));
    return check_overlaps(names, args);
}

static bool is_empty(const struct rope_problem *p) {
    return p->batch == 0 || p->seq == 0 || p->dim == 0 || p->q_heads + p->k_heads == 0;
}

liger_status liger_rope_forward(liger_context *context, const liger_rope_forward_args *given, liger_stream stream) {
    liger_rope_forward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "rope_forward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "rope_forward"));
    struct rope_forward_problem problem;
    LIGER_TRY(lower(&forward_names, &args, &problem.rope));
    if (is_empty(&problem.rope)) return LIGER_OK;
    return context->kernels->rope_forward(context, &problem, stream);
}

liger_status liger_rope_backward(liger_context *context, const liger_rope_backward_args *given, liger_stream stream) {
    liger_rope_backward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "rope_backward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "rope_backward"));
    const liger_rope_forward_args same = {
        .q = args.dq,
        .k = args.dk,
        .cos = args.cos,
        .sin = args.sin,
        .q_out = args.dq_out,
        .k_out = args.dk_out,
        .rotary = args.rotary,
        .operand_dtype = args.operand_dtype,
    };
    struct rope_backward_problem problem;
    LIGER_TRY(lower(&backward_names, &same, &problem.rope));
    if (is_empty(&problem.rope)) return LIGER_OK;
    return context->kernels->rope_backward(context, &problem, stream);
}
