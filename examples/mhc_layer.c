/* mhc_layer.c - the library from C: a linear layer within hyper-connections, forward and backward on the CPU, and every gradient
 * held to finite differences.
 *
 *   cc examples/mhc_layer.c -I. -Lbuild/dev -lliger -lm -o mhc_layer && LD_LIBRARY_PATH=build/dev ./mhc_layer */
#include <liger/liger.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 6, HC = 4, C = 8, K = HC * C, M = HC * (HC + 2) };
enum { X, PHI, B, ALPHA_PRE, ALPHA_POST, ALPHA_RES, WEIGHT, PARAMETERS };

static const char *const names[] = {"x", "phi", "b", "alpha_pre", "alpha_post", "alpha_res", "weight"};
static const int sizes[] = {TOKENS * K, K *M, M, 1, 1, 1, C *C};

/* What a layer is made of and answers; the library keeps nothing. */
static float parameter[PARAMETERS][K * M], gradient[PARAMETERS][K * M];
static float h_pre[TOKENS * HC], h_post[TOKENS * HC], h_res[TOKENS * HC * HC], mix[TOKENS * M], rstd[TOKENS];
static float x_in[TOKENS * C], f[TOKENS * C], y[TOKENS * K], dy[TOKENS * K];
static liger_context *context;

static liger_tensor tensor(float *data, int ndim, int64_t a, int64_t b, int64_t c) {
    const int64_t shape[] = {a, b, c};
    return liger_tensor_contiguous(data, LIGER_F32, ndim, shape);
}
static liger_tensor streams(float *data) { return tensor(data, 3, TOKENS, HC, C); }
static liger_tensor rows(float *data) { return tensor(data, 2, TOKENS, C, 0); }
static liger_tensor coefficients(float *data) { return tensor(data, 2, TOKENS, HC, 0); }
static liger_tensor matrices(float *data) { return tensor(data, 3, TOKENS, HC, HC); }

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

static double loss(void) {
    liger_mhc_coeffs_forward_args coeffs = LIGER_MHC_COEFFS_FORWARD_ARGS_INIT;
    coeffs.x = streams(parameter[X]);
    coeffs.phi = tensor(parameter[PHI], 2, K, M, 0);
    coeffs.b = tensor(parameter[B], 1, M, 0, 0);
    coeffs.alpha_pre = tensor(parameter[ALPHA_PRE], 0, 0, 0, 0);
    coeffs.alpha_post = tensor(parameter[ALPHA_POST], 0, 0, 0, 0);
    coeffs.alpha_res = tensor(parameter[ALPHA_RES], 0, 0, 0, 0);
    coeffs.h_pre = coefficients(h_pre), coeffs.h_post = coefficients(h_post), coeffs.h_res = matrices(h_res);
    coeffs.x_in = rows(x_in), coeffs.mix = tensor(mix, 2, TOKENS, M, 0), coeffs.rstd = tensor(rstd, 1, TOKENS, 0, 0);
    must(liger_mhc_coeffs_forward_workspace(context, &coeffs, &coeffs.workspace_bytes));
    coeffs.workspace = workspace_of(coeffs.workspace_bytes);
    must(liger_mhc_coeffs_forward(context, &coeffs, NULL));

    for (int n = 0; n < TOKENS; n++) /* the layer */
        for (int o = 0; o < C; o++) {
            f[n * C + o] = 0;
            for (int i = 0; i < C; i++) f[n * C + o] += parameter[WEIGHT][o * C + i] * x_in[n * C + i];
        }

    liger_mhc_post_res_forward_args post = LIGER_MHC_POST_RES_FORWARD_ARGS_INIT;
    post.x = streams(parameter[X]), post.f = rows(f);
    post.h_post = coefficients(h_post), post.h_res = matrices(h_res), post.y = streams(y);
    must(liger_mhc_post_res_forward(context, &post, NULL));
    double total = 0;
    for (int i = 0; i < TOKENS * K; i++) total += (double)dy[i] * y[i];
    return total;
}

static void backward(void) {
    static float df[TOKENS * C], dx_in[TOKENS * C], dh_post[TOKENS * HC], dh_res[TOKENS * HC * HC];
    liger_mhc_post_res_backward_args post = LIGER_MHC_POST_RES_BACKWARD_ARGS_INIT;
    post.dy = streams(dy), post.x = streams(parameter[X]), post.f = rows(f);
    post.h_post = coefficients(h_post), post.h_res = matrices(h_res);
    post.dx = streams(gradient[X]), post.df = rows(df);
    post.dh_post = coefficients(dh_post), post.dh_res = matrices(dh_res);
    must(liger_mhc_post_res_backward(context, &post, NULL));

    for (int i = 0; i < C; i++) /* the layer */
        for (int n = 0; n < TOKENS; n++) {
            dx_in[n * C + i] = 0;
            for (int o = 0; o < C; o++) {
                dx_in[n * C + i] += df[n * C + o] * parameter[WEIGHT][o * C + i];
                gradient[WEIGHT][o * C + i] += df[n * C + o] * x_in[n * C + i];
            }
        }

    liger_mhc_coeffs_backward_args coeffs = LIGER_MHC_COEFFS_BACKWARD_ARGS_INIT;
    coeffs.x = streams(parameter[X]);
    coeffs.phi = tensor(parameter[PHI], 2, K, M, 0), coeffs.dphi = tensor(gradient[PHI], 2, K, M, 0);
    coeffs.b = tensor(parameter[B], 1, M, 0, 0), coeffs.db = tensor(gradient[B], 1, M, 0, 0);
    coeffs.alpha_pre = tensor(parameter[ALPHA_PRE], 0, 0, 0, 0);
    coeffs.alpha_post = tensor(parameter[ALPHA_POST], 0, 0, 0, 0);
    coeffs.alpha_res = tensor(parameter[ALPHA_RES], 0, 0, 0, 0);
    coeffs.dalpha_pre = tensor(gradient[ALPHA_PRE], 0, 0, 0, 0);
    coeffs.dalpha_post = tensor(gradient[ALPHA_POST], 0, 0, 0, 0);
    coeffs.dalpha_res = tensor(gradient[ALPHA_RES], 0, 0, 0, 0);
    coeffs.mix = tensor(mix, 2, TOKENS, M, 0), coeffs.rstd = tensor(rstd, 1, TOKENS, 0, 0);
    coeffs.dh_post = coefficients(dh_post), coeffs.dh_res = matrices(dh_res), coeffs.dx_in = rows(dx_in);
    coeffs.dx_so_far = coeffs.dx = streams(gradient[X]); /* what the residual has said of x, and more on top of it */
    must(liger_mhc_coeffs_backward_workspace(context, &coeffs, &coeffs.workspace_bytes));
    coeffs.workspace = workspace_of(coeffs.workspace_bytes);
    must(liger_mhc_coeffs_backward(context, &coeffs, NULL));
}

static float noise(void) { /* in [-1, 1], the same in every run */
    static unsigned state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

/* The slope of the loss along a direction, by the gradient and by two losses. */
static int check(int p) {
    static float direction[K * M], before[K * M];
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
    const int good = fabs(slope - by_gradient) <= 5e-3 * sqrt(length * squares) && squares > 0;
    printf("%-10s %12.6f by its gradient, %12.6f by differences: %s\n", names[p], by_gradient, slope,
           good ? "agrees with finite differences" : "WRONG");
    return good;
}

int main(void) {
    int good = 1;
    must(liger_context_create(NULL, &context)); /* all defaults: the CPU, its best instruction set */
    for (int p = 0; p < PARAMETERS; p++)
        for (int i = 0; i < sizes[p]; i++) parameter[p][i] = noise() * (p == PHI ? 0.3f : 1.0f);
    for (int i = 0; i < TOKENS * K; i++) dy[i] = noise();
    printf("on %s: the loss is %.6f\n", liger_context_backend(context), loss());
    backward();
    for (int p = 0; p < PARAMETERS; p++) good &= check(p);
    workspace_of(0);
    liger_context_destroy(context);
    return good ? 0 : 1;
}
