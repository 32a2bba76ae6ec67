/* modes_history.c - does what ran before change a call's bits? State that outlives a call (a cache of device facts, an
 * attribute of a kernel, a pool, scratch) shows only in some order of calls, so the orders are shuffled, and the right bits
 * are those of a fresh process. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/harness/device_memory.h"
#include "tests/harness/modes.h"
#include "tests/harness/random.h"

/* Backwards first: cases grow, and what a large one leaves behind is then met by smaller ones. */
enum { BACKWARDS, SHUFFLED, SHUFFLED_AGAIN, PASSES };
static const char *const pass_names[PASSES] = {"backwards", "shuffled", "shuffled again"};
enum { MOST_CONTEXTS = 8, SEED = 20 };

struct step {
    const struct op_cases *op;
    const struct op_case *c;
    struct op_types types;
    uint64_t fresh, bits[PASSES]; /* hashes of the outputs; 0: the call failed */
};

struct history {
    const struct history_backend *backend;
    struct step *steps;
    int count;
    liger_context *contexts[MOST_CONTEXTS];
    struct device_stream *stream;
    bool blas; /* it makes f32 products */
};

/* ---- the steps ---- */

/* Large cases with one choice of weight and index dtypes, because the other one runs the same way through a kernel; and on a
 * host, where no kernel has anything that outlives a call (a pool and scratch memory do), in one dtype. */
static bool step_wanted(const struct history_backend *backend, const struct op_cases *op, const struct op_case *c,
                        int choice, struct op_types *types) {
    struct op_types first;
    if (c->large && (backend->quick || choice % 2)) return false;
    for (int k = 0; c->large && backend->on_host && k < choice; k++)
        if (modes_types(op, c, k, &first)) return false;
    return modes_types(op, c, choice, types);
}

static bool list_steps(struct history *history, const struct op_cases *const *ops, int op_count) {
    int most = 0;
    for (int k = 0; k < op_count; k++) most += ops[k]->case_count * MODE_CHOICES;
    history->steps = calloc((size_t)most + 1, sizeof *history->steps);
    for (int k = 0; history->steps != NULL && k < op_count; k++)
        for (const struct op_case *c = ops[k]->cases; c < ops[k]->cases + ops[k]->case_count; c++)
            for (int choice = 0; choice < MODE_CHOICES; choice++) {
                struct step step = {.op = ops[k], .c = c};
                if (step_wanted(history->backend, ops[k], c, choice, &step.types))
                    history->steps[history->count++] = step;
            }
    return history->steps != NULL;
}

static uint64_t hash_of(const unsigned char *bits, size_t bytes) {
    uint64_t hash = 0xcbf29ce484222325u, word;
    for (size_t i = 0; i < bytes; i += sizeof word) {
        word = 0;
        memcpy(&word, bits + i, bytes - i < sizeof word ? bytes - i : sizeof word);
        hash = (hash ^ word) * 0x100000001b3u;
        hash ^= hash >> 29; /* a high bit reaches the low ones */
    }
    return hash ? hash : 1;
}

static uint64_t run_step(const struct step *step, liger_context *context, struct device_stream *stream) {
    uint64_t hash = 0;
    size_t bytes;
    struct op_run *run = op_run_new(context, step->op, step->c, step->types, modes_case_seed(step->op, step->c));
    unsigned char *bits = run ? modes_bits(run, context, stream, &bytes) : NULL;
    if (bits != NULL) hash = hash_of(bits, bytes);
    free(bits);
    op_run_free(run);
    return hash;
}

/* ---- the fresh process ---- */

static void answer(const struct history *history, int to) {
    liger_context *context = history->backend->open(history->backend->how, 0);
    for (int k = 0; k < history->count; k++) {
        const uint64_t hash = context ? run_step(&history->steps[k], context, NULL) : 0;
        if (write(to, &hash, sizeof hash) != sizeof hash) _exit(1);
    }
    _exit(0);
}

static bool read_all(int from, void *to, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        const ssize_t some = read(from, (char *)to + at, bytes - at);
        if (some <= 0) return false;
        at += (size_t)some;
    }
    return true;
}

static bool ask_fresh_process(struct history *history) {
    int ends[2], status = -1;
    bool fine = true;
    if (pipe(ends) != 0) return false;
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) answer(history, ends[1]);
    close(ends[1]);
    for (int k = 0; child > 0 && fine && k < history->count; k++)
        fine = read_all(ends[0], &history->steps[k].fresh, sizeof(uint64_t));
    close(ends[0]);
    return child > 0 && waitpid(child, &status, 0) == child && fine && status == 0;
}

/* ---- the other orders ---- */

/* One of the contexts, which now and then is ended and made anew. */
static liger_context *some_context(struct history *history, struct random_stream *random) {
    const struct history_backend *backend = history->backend;
    const int which = (int)random_below(random, backend->contexts < MOST_CONTEXTS ? backend->contexts : MOST_CONTEXTS);
    if (random_below(random, 24) == 0) {
        liger_context_destroy(history->contexts[which]);
        history->contexts[which] = NULL;
    }
    if (history->contexts[which] == NULL) history->contexts[which] = backend->open(backend->how, which);
    return history->contexts[which];
}

static void complain_of(const struct step *step, const char *what, struct report *report) {
    report_fail(report, "%s of %s, %s, weight %s, index %s: other bits than in a fresh process (%s)", step->op->name,
                step->c->label, liger_dtype_name((int)step->types.t), liger_dtype_name((int)step->types.weight),
                liger_dtype_name((int)step->types.index), what);
}

static void run_pass(struct history *history, int pass, int *order, struct report *report) {
    struct random_stream random = random_start(SEED, (uint64_t)pass);
    for (int k = 0; k < history->count && pass == BACKWARDS; k++) order[k] = history->count - 1 - k;
    for (int k = history->count - 1; k > 0 && pass != BACKWARDS; k--) {
        const int other = (int)random_below(&random, k + 1), kept = order[k];
        order[k] = order[other];
        order[other] = kept;
    }
    for (int k = 0; k < history->count; k++) {
        struct step *step = &history->steps[order[k]];
        liger_context *context = some_context(history, &random);
        if (context != NULL && history->stream == NULL) history->stream = device_stream_open(context);
        if (context != NULL && k == 0)
            history->blas = device_is_host(context) && strstr(liger_context_gemm_provider(context), "sgemm") != NULL;
        struct device_stream *stream = random_below(&random, 2) ? history->stream : NULL;
        if (context != NULL) step->bits[pass] = run_step(step, context, stream);
        if (step->bits[pass] == 0)
            report_fail(report, "%s of %s failed: %s", step->op->name, step->c->label, liger_last_error());
    }
}

/* A forked process does without the BLAS of its parent (liger/cpu/blas.c): it makes f32 products with other kernels. The
 * passes are compared with each other then. */
static bool is_product_of_a_blas(const struct history *history, const struct step *step) {
    const bool product = strstr(step->op->name, "gemm") != NULL || strstr(step->op->name, "linear_") != NULL;
    return history->blas && product && step->types.t == LIGER_F32;
}

static void judge(const struct history *history, const struct op_cases *op, struct report *report) {
    report_begin(report);
    for (int k = 0; k < history->count; k++) {
        const struct step *step = &history->steps[k];
        if (step->op != op) continue;
        const bool blas = is_product_of_a_blas(history, step);
        const uint64_t expected = blas ? step->bits[0] : step->fresh;
        if (blas) report_not_applicable(report, "history: a fresh process makes this product without the BLAS");
        for (int pass = blas; pass < PASSES; pass++) {
            if (step->bits[pass] == 0) continue; /* has been told */
            if (step->bits[pass] == expected) report_pass(report);
            else complain_of(step, pass_names[pass], report);
        }
    }
    report_end(report, op->name, "history", history->backend->name);
}

static void run_passes(struct history *history, struct report *report) {
    int *order = calloc((size_t)history->count + 1, sizeof *order);
    if (order == NULL) report_fail(report, "history: no memory");
    for (int pass = 0; order != NULL && pass < PASSES; pass++) run_pass(history, pass, order, report);
    device_stream_close(history->stream);
    for (int k = 0; k < MOST_CONTEXTS; k++) liger_context_destroy(history->contexts[k]);
    free(order);
}

void mode_history(const struct history_backend *backend, const struct op_cases *const *ops, int op_count,
                  struct report *report) {
    struct history history = {.backend = backend};
    char what[64];
    report_begin(report);
    const bool listed = list_steps(&history, ops, op_count), answered = listed && ask_fresh_process(&history);
    if (answered) report_pass(report);
    else report_fail(report, "history: %s", listed ? "the fresh process gave no answer" : "no memory");
    if (answered) run_passes(&history, report);
    snprintf(what, sizeof what, "%d calls, seed %d", history.count * (PASSES + 1), SEED);
    report_end(report, what, "history", backend->name);
    for (int k = 0; answered && k < op_count; k++) judge(&history, ops[k], report);
    free(history.steps);
}
