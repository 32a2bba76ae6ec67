/* dpo.c - direct preference optimisation from C: a linear head, its frozen reference, pairs of answers of unequal length; the loss
 * and its gradients on the CPU, held to finite differences.
 *
 *   cc examples/dpo.c -I. -Lbuild/dev -lliger -lm -o dpo && LD_LIBRARY_PATH=build/dev ./dpo */
#include <liger/liger.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PAIRS = 3, SEQUENCES = 2 * PAIRS, TOKENS = 7, ROWS = SEQUENCES * TOKENS, HIDDEN = 16, VOCAB = 50 };
enum { X, WEIGHT, BIAS, PARAMETERS, MOST = HIDDEN * VOCAB };

static const char *const names[] = {"x", "weight", "bias"};
static const int sizes[] = {ROWS * HIDDEN, VOCAB *HIDDEN, VOCAB};

static float parameter[PARAMETERS][MOST], gradient[PARAMETERS][MOST], frozen_weight[MOST];
static int32_t target[ROWS]; /* the chosen answers, then the rejected ones; -100 where there is nothing to learn */
static float logits[ROWS * VOCAB], log_prob[ROWS], normalizer[ROWS * 2], d_log_prob[ROWS], reference[SEQUENCES];
static liger_context *context;

static liger_tensor matrix(void *data, liger_dtype dtype, int64_t rows, int64_t cols) {
    const int64_t shape[] = {rows, cols};
    return liger_tensor_contiguous(data, dtype, 2, shape);
}
static liger_tensor vector(void *data, liger_dtype dtype, int64_t size) {
    return liger_tensor_contiguous(data, dtype, 1, &size);
}

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

static void log_probs_under(float *weight) {
    liger_linear_logprob_forward_args args = LIGER_LINEAR_LOGPROB_FORWARD_ARGS_INIT;
    args.x = matrix(parameter[X], LIGER_F32, ROWS, HIDDEN), args.weight = matrix(weight, LIGER_F32, VOCAB, HIDDEN);
    args.bias = vector(parameter[BIAS], LIGER_F32, VOCAB), args.target = vector(target, LIGER_I32, ROWS);
    args.logits = matrix(logits, LIGER_F32, ROWS, VOCAB);
    args.log_prob = vector(log_prob, LIGER_F32, ROWS), args.normalizer = matrix(normalizer, LIGER_F32, ROWS, 2);
    must(liger_linear_logprob_forward_workspace(context, &args, &args.workspace_bytes));
    args.workspace = workspace_of(args.workspace_bytes);
    must(liger_linear_logprob_forward(context, &args, NULL));
}

/* The same tokens, as sequences. */
static void preference_loss(liger_preference_loss_args args) {
    args.beta = 0.5f;
    args.log_prob = matrix(log_prob, LIGER_F32, SEQUENCES, TOKENS);
    args.target = matrix(target, LIGER_I32, SEQUENCES, TOKENS);
    must(liger_preference_loss_workspace(context, &args, &args.workspace_bytes));
    args.workspace = workspace_of(args.workspace_bytes);
    must(liger_preference_loss(context, &args, NULL));
}

static void freeze_reference(void) {
    liger_preference_loss_args args = LIGER_PREFERENCE_LOSS_ARGS_INIT;
    log_probs_under(frozen_weight);
    args.sequence_log_prob = vector(reference, LIGER_F32, SEQUENCES);
    preference_loss(args);
}

static double loss(void) {
    liger_preference_loss_args args = LIGER_PREFERENCE_LOSS_ARGS_INIT;
    float value;
    log_probs_under(parameter[WEIGHT]);
    args.type = LIGER_PREFERENCE_SIGMOID, args.alpha = 0.5f; /* and half of the likelihood of the chosen answers */
    args.reference = vector(reference, LIGER_F32, SEQUENCES);
    args.loss = vector(&value, LIGER_F32, 1), args.d_log_prob = matrix(d_log_prob, LIGER_F32, SEQUENCES, TOKENS);
    preference_loss(args);
    return (double)value;
}

/* From what loss() has left. */
static void backward(void) {
    liger_linear_logprob_backward_args args = LIGER_LINEAR_LOGPROB_BACKWARD_ARGS_INIT;
    args.x = matrix(parameter[X], LIGER_F32, ROWS, HIDDEN);
    args.weight = matrix(parameter[WEIGHT], LIGER_F32, VOCAB, HIDDEN);
    args.bias = vector(parameter[BIAS], LIGER_F32, VOCAB), args.target = vector(target, LIGER_I32, ROWS);
    args.logits = matrix(logits, LIGER_F32, ROWS, VOCAB);
    args.log_prob = vector(log_prob, LIGER_F32, ROWS), args.normalizer = matrix(normalizer, LIGER_F32, ROWS, 2);
    args.d_log_prob = vector(d_log_prob, LIGER_F32, ROWS);
    args.dx = matrix(gradient[X], LIGER_F32, ROWS, HIDDEN);
    args.dweight = matrix(gradient[WEIGHT], LIGER_F32, VOCAB, HIDDEN);
    args.dbias = vector(gradient[BIAS], LIGER_F32, VOCAB);
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
static int check(int p) {
    static float direction[MOST], before[MOST];
    const float step = 0.01f;
    double by_gradient = 0, length = 0, squares = 0, ends[2];
    for (int i = 0; i < sizes[p]; i++) {
        before[i] = parameter[p][i], direction[i] = noise();
        by_gradient += (double)gradient[p][i] * direction[i];
        length += (double)direction[i] * direction[i], squares += (double)gradient[p][i] * gradient[p][i];
    }
    for (int end = 0; end < 2; end++) {
        for (int i = 0; i < sizes[p]; i++) parameter[p][i] = before[i] + (end ? step : -step) * direction[i];
        ends[end] = loss();
    }
    for (int i = 0; i < sizes[p]; i++) parameter[p][i] = before[i];
    const double slope = (ends[1] - ends[0]) / (2 * (double)step);
    const int good = fabs(slope - by_gradient) <= 1e-3 * sqrt(length * squares) && squares > 0;
    printf("%-10s %12.6f by its gradient, %12.6f by differences: %s\n", names[p], by_gradient, slope,
           good ? "agrees with finite differences" : "WRONG");
    return good;
}

int main(void) {
    int good = 1;
    must(liger_context_create(NULL, &context)); /* all defaults: the CPU, its best instruction set */
    for (int p = 0; p < PARAMETERS; p++)
        for (int i = 0; i < sizes[p]; i++) parameter[p][i] = noise() * (p == WEIGHT ? 0.3f : 1.0f);
    for (int i = 0; i < MOST; i++) frozen_weight[i] = parameter[WEIGHT][i] + 0.05f * noise();
    for (int i = 0; i < ROWS; i++) { /* a prompt of two tokens, and answers of one token to five */
        const int sequence = i / TOKENS, token = i % TOKENS;
        target[i] = token < 2 || token > 2 + (3 * sequence) % 5 ? -100 : (13 * i) % VOCAB;
    }
    freeze_reference();
    printf("on %s: the loss is %.6f\n", liger_context_backend(context), loss());
    backward();
    for (int p = 0; p < PARAMETERS; p++) good &= check(p);
    workspace_of(0);
    liger_context_destroy(context);
    return good ? 0 : 1;
}
