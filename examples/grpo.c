/* grpo.c - the library from C: one step of GRPO on a linear head, on the CPU. Log-probabilities of sampled tokens, the policy's
 * loss, and the gradients of hidden states and weight, each held to finite differences of the loss.
 *
 *   cc examples/grpo.c -I. -Lbuild/dev -lliger -lm -o grpo && LD_LIBRARY_PATH=build/dev ./grpo */
#include <liger/liger.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { SEQUENCES = 4, TOKENS = 6, ROWS = SEQUENCES * TOKENS, HIDDEN = 16, VOCAB = 40, IGNORED = -100 };

static liger_context *context;
static float x[ROWS * HIDDEN], weight[VOCAB * HIDDEN], dx[ROWS * HIDDEN], dweight[VOCAB * HIDDEN];
static float logits[ROWS * VOCAB]; /* so few that all of them fit, for forward and backward */
static float log_prob[ROWS], normalizer[ROWS * 2], d_log_prob[ROWS], advantage[SEQUENCES];
static float old_log_prob[ROWS], ref_log_prob[ROWS];
static unsigned char mask[ROWS];
static int64_t target[ROWS];

static liger_tensor vector(void *data, liger_dtype dtype, int64_t size) {
    return liger_tensor_contiguous(data, dtype, 1, &size);
}
static liger_tensor matrix(void *data, liger_dtype dtype, int64_t rows, int64_t cols) {
    const int64_t shape[] = {rows, cols};
    return liger_tensor_contiguous(data, dtype, 2, shape);
}
static liger_tensor of_tokens(float *data) { return matrix(data, LIGER_F32, SEQUENCES, TOKENS); }

static void must(liger_status status) {
    if (status == LIGER_OK) return;
    fprintf(stderr, "%s: %s\n", liger_status_name(status), liger_last_error());
    exit(1);
}

/* 256-byte aligned, as a workspace must be. */
static void *workspace_of(size_t bytes) {
    static char *block;
    free(block);
    block = malloc(bytes + 256);
    if (block == NULL) exit(1);
    return block + 256 - (size_t)block % 256;
}

static void log_probs(float *of_target) {
    liger_linear_logprob_forward_args args = LIGER_LINEAR_LOGPROB_FORWARD_ARGS_INIT;
    args.x = matrix(x, LIGER_F32, ROWS, HIDDEN), args.weight = matrix(weight, LIGER_F32, VOCAB, HIDDEN);
    args.target = vector(target, LIGER_I64, ROWS), args.ignore_index = IGNORED;
    args.logits = matrix(logits, LIGER_F32, ROWS, VOCAB);
    args.log_prob = vector(of_target, LIGER_F32, ROWS), args.normalizer = matrix(normalizer, LIGER_F32, ROWS, 2);
    must(liger_linear_logprob_forward_workspace(context, &args, &args.workspace_bytes));
    args.workspace = workspace_of(args.workspace_bytes);
    must(liger_linear_logprob_forward(context, &args, NULL));
}

static float loss(void) {
    float result, kl, clip_ratio;
    log_probs(log_prob);
    liger_policy_loss_args args = LIGER_POLICY_LOSS_ARGS_INIT;
    args.loss_type = LIGER_POLICY_GRPO, args.beta = 0.1f;
    args.log_prob = of_tokens(log_prob), args.mask = matrix(mask, LIGER_BOOL, SEQUENCES, TOKENS);
    args.old_log_prob = of_tokens(old_log_prob), args.ref_log_prob = of_tokens(ref_log_prob);
    args.advantage = vector(advantage, LIGER_F32, SEQUENCES), args.d_log_prob = of_tokens(d_log_prob);
    args.loss = liger_tensor_contiguous(&result, LIGER_F32, 0, NULL);
    args.kl = liger_tensor_contiguous(&kl, LIGER_F32, 0, NULL);
    args.clip_ratio = liger_tensor_contiguous(&clip_ratio, LIGER_F32, 0, NULL);
    must(liger_policy_loss_workspace(context, &args, &args.workspace_bytes));
    args.workspace = workspace_of(args.workspace_bytes);
    must(liger_policy_loss(context, &args, NULL));
    return result;
}

static void backward(void) {
    liger_linear_logprob_backward_args args = LIGER_LINEAR_LOGPROB_BACKWARD_ARGS_INIT;
    args.x = matrix(x, LIGER_F32, ROWS, HIDDEN), args.weight = matrix(weight, LIGER_F32, VOCAB, HIDDEN);
    args.target = vector(target, LIGER_I64, ROWS), args.ignore_index = IGNORED;
    args.logits = matrix(logits, LIGER_F32, ROWS, VOCAB);
    args.log_prob = vector(log_prob, LIGER_F32, ROWS), args.normalizer = matrix(normalizer, LIGER_F32, ROWS, 2);
    args.d_log_prob = vector(d_log_prob, LIGER_F32, ROWS);
    args.dx = matrix(dx, LIGER_F32, ROWS, HIDDEN), args.dweight = matrix(dweight, LIGER_F32, VOCAB, HIDDEN);
    must(liger_linear_logprob_backward_workspace(context, &args, &args.workspace_bytes));
    args.workspace = workspace_of(args.workspace_bytes);
    must(liger_linear_logprob_backward(context, &args, NULL));
}

static float noise(void) { /* in [-1, 1], the same in every run */
    static unsigned state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

/* The slope of the loss along a direction, by the gradient and by two losses. */
static int check(const char *name, float *values, const float *gradient, int count) {
    static float direction[VOCAB * HIDDEN], before[VOCAB * HIDDEN];
    const float step = 0.005f;
    double by_gradient = 0, length = 0, squares = 0, ends[2];
    for (int i = 0; i < count; i++) {
        before[i] = values[i], direction[i] = noise();
        by_gradient += (double)gradient[i] * direction[i];
        length += (double)direction[i] * direction[i], squares += (double)gradient[i] * gradient[i];
    }
    for (int end = 0; end < 2; end++) {
        for (int i = 0; i < count; i++) values[i] = before[i] + (end ? step : -step) * direction[i];
        ends[end] = (double)loss();
    }
    for (int i = 0; i < count; i++) values[i] = before[i];
    const double slope = (ends[1] - ends[0]) / (2 * (double)step);
    const int good = fabs(slope - by_gradient) <= 5e-4 * sqrt(length * squares) && squares > 0;
    printf("%-8s %12.6f by its gradient, %12.6f by differences: %s\n", name, by_gradient, slope,
           good ? "agrees with finite differences" : "WRONG");
    return good;
}

int main(void) {
    must(liger_context_create(NULL, &context)); /* all defaults: the CPU, its best instruction set */
    for (int i = 0; i < ROWS * HIDDEN; i++) x[i] = noise();
    for (int i = 0; i < VOCAB * HIDDEN; i++) weight[i] = noise();
    for (int i = 0; i < SEQUENCES; i++) advantage[i] = noise();
    for (int row = 0; row < ROWS; row++) { /* the last sequences are shorter */
        mask[row] = row % TOKENS < TOKENS - row / TOKENS;
        target[row] = mask[row] ? (int64_t)((noise() + 1) * 0.49f * VOCAB) : IGNORED;
    }
    log_probs(ref_log_prob); /* and the policy has gone some way since then, and a little since it sampled */
    for (int i = 0; i < VOCAB * HIDDEN; i++) weight[i] += 0.3f * noise();
    log_probs(old_log_prob);
    for (int i = 0; i < VOCAB * HIDDEN; i++) weight[i] += 0.02f * noise();

    printf("on %s: the loss is %.6f\n", liger_context_backend(context), (double)loss());
    backward();
    int good = check("x", x, dx, ROWS * HIDDEN);
    good &= check("weight", weight, dweight, VOCAB * HIDDEN);
    workspace_of(0);
    liger_context_destroy(context);
    return good ? 0 : 1;
}
