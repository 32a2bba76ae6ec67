/* liger_bench.c - the time of every function at its cases' bench points: microseconds, GB/s, GFLOP/s.
 *
 *   liger_bench [--backend cpu|cuda] [--isa NAME] [--op NAME|all] [--dtype f32|f16|bf16|all] [--threads N] [--json FILE]
 *
 * GB/s counts the bytes that must move (every tensor once, unless the cases say otherwise). The time is the smallest mean
 * of several batches of calls; on a GPU a batch is queued as a whole and waited for once. Inputs are not flushed from
 * caches between calls, so a point that fits in a cache shows the cache. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/harness/call_image.h"
#include "tests/harness/device_memory.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/op_list.h"

struct options {
    const char *backend, *isa, *op, *dtype, *json;
    int threads;
};

static bool is(const char *a, const char *b) { return strcmp(a, b) == 0; }

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* ---- a call's memory: drawn in blocks that repeat, because a large tensor's worth of doubles would not fit ---- */

struct prepared {
    struct op_call call;
    struct tensor_spec spec[OP_MAX_TENSORS];
    void *memory[OP_MAX_TENSORS];
    double bytes;
};

enum { BLOCK = 1 << 16 };

static bool fill(liger_context *context, const struct tensor_spec *spec, liger_dtype dtype, void *memory,
                 int64_t span) {
    static double values[BLOCK];
    static char block[BLOCK * 8];
    const size_t size = liger_dtype_size((int)dtype);
    bool fine = true;
    op_run_draw(spec, BLOCK, values, random_start(random_seed(spec->name), 0));
    for (int i = 0; i < BLOCK; i++) format_store(dtype, block + (size_t)i * size, values[i]);
    for (int64_t at = 0; at < span && fine; at += BLOCK) {
        const size_t count = (size_t)(span - at < BLOCK ? span - at : BLOCK);
        fine = device_upload(context, (char *)memory + (size_t)at * size, block, count * size);
    }
    return fine;
}

static bool prepare(struct prepared *p, liger_context *context, const struct op_cases *op, const struct op_case *c,
                    struct op_types types) {
    memset(p, 0, sizeof *p);
    p->call.c = *c;
    op->describe(c, p->spec);
    for (int i = 0; i < op->tensor_count; i++) {
        const struct tensor_spec *spec = &p->spec[i];
        liger_tensor *t = &p->call.t[i];
        if (spec->absent) continue;
        const liger_dtype dtype = op_tensor_dtype(spec, types);
        const int64_t span = op_tensor_layout(spec, SPACING_DENSE, t->stride);
        p->memory[i] = device_allocate(context, (size_t)span * liger_dtype_size((int)dtype));
        if (p->memory[i] == NULL || !fill(context, spec, dtype, p->memory[i], span)) return false;
        t->data = p->memory[i];
        t->dtype = (int32_t)dtype;
        t->ndim = spec->ndim;
        memcpy(t->shape, spec->shape, sizeof t->shape);
        p->bytes += (double)span * (double)liger_dtype_size((int)dtype) * (spec->role == ROLE_INOUT ? 2 : 1);
    }
    if (op->workspace == NULL) return true;
    if (op->workspace(context, &p->call, &p->call.workspace_bytes) != LIGER_OK) return false;
    p->call.workspace = p->memory[OP_MAX_TENSORS - 1] = device_allocate(context, p->call.workspace_bytes);
    return p->call.workspace != NULL;
}

static void release(struct prepared *p, liger_context *context) {
    for (int i = 0; i < OP_MAX_TENSORS; i++)
        if (p->memory[i] != NULL) device_release(context, p->memory[i]);
}

/* ---- measuring ---- */

static double batch(liger_context *context, const struct op_cases *op, const struct op_call *call, int calls) {
    const double begin = now();
    for (int k = 0; k < calls; k++)
        if (op->call(context, call, NULL) != LIGER_OK) return -1;
    if (device_synchronize(context) != NULL) return -1;
    return (now() - begin) / calls;
}

/* Seconds per call; negative if a call fails. */
static double measure(liger_context *context, const struct op_cases *op, const struct op_call *call) {
    double best = batch(context, op, call, 1);
    if (best >= 0) best = batch(context, op, call, 2);
    if (best < 0) return best;
    const double wanted = 0.05 / (best > 1e-7 ? best : 1e-7);
    const int calls = wanted < 1 ? 1 : wanted > 2000 ? 2000 : (int)wanted;
    for (int k = 0; k < 7; k++) {
        const double seconds = batch(context, op, call, calls);
        if (seconds < 0) return seconds;
        best = seconds < best ? seconds : best;
    }
    return best;
}

static void report(FILE *json, const char *backend, const struct op_cases *op, const struct op_case *c,
                   const char *dtype, double seconds, double bytes, double flops) {
    printf("%-30s %-22s %-5s %-14s %10.1f us %8.1f GB/s", op->name, c->label, dtype, backend, 1e6 * seconds,
           1e-9 * bytes / seconds);
    if (flops > 0) printf(" %9.1f GFLOP/s", 1e-9 * flops / seconds);
    printf("\n");
    fflush(stdout);
    if (json != NULL)
        fprintf(json,
                "%s  {\"op\": \"%s\", \"case\": \"%s\", \"dtype\": \"%s\", \"backend\": \"%s\", \"us\": %.3f, "
                "\"gb_per_s\": %.2f, \"gflop_per_s\": %.2f}",
                ftell(json) > 2 ? ",\n" : "\n", op->name, c->label, dtype, backend, 1e6 * seconds,
                1e-9 * bytes / seconds, 1e-9 * flops / seconds);
}

static bool run_point(liger_context *context, const struct op_cases *op, const struct op_case *c, liger_dtype t,
                      FILE *json) {
    const struct op_types types = {t, t, LIGER_I64};
    struct prepared p;
    const bool made = prepare(&p, context, op, c, types);
    const double seconds = made ? measure(context, op, &p.call) : -1;
    const char *dtype = liger_dtype_name((int)t);
    if (seconds > 0)
        report(json, liger_context_backend(context), op, c, dtype, seconds, op->bytes ? op->bytes(c, &types) : p.bytes,
               op->flops ? op->flops(c) : 0);
    else printf("%-30s %-22s %-5s FAILED: %s\n", op->name, c->label, dtype, made ? liger_last_error() : "no memory");
    release(&p, context);
    return seconds > 0;
}

static bool op_wanted(const char *wanted, const char *function) {
    const size_t length = strlen(wanted);
    return is(wanted, "all") ||
           (strncmp(wanted, function, length) == 0 && (function[length] == 0 || function[length] == '_'));
}

static bool run_all(liger_context *context, const struct options *options, FILE *json) {
    static const liger_dtype dtypes[] = {LIGER_F32, LIGER_BF16, LIGER_F16};
    bool fine = true;
    for (int k = 0; k < OP_COUNT(op_list); k++) {
        const struct op_cases *op = op_list[k].cases;
        if (op == NULL || !op_wanted(options->op, op_list[k].name)) continue;
        for (int point = 0; point < op->bench_count; point++)
            for (int d = 0; d < 3; d++) {
                const struct op_case *c = &op->bench[point];
                const bool named = is(options->dtype, liger_dtype_name((int)dtypes[d]));
                if ((!named && !is(options->dtype, "all")) || (c->dtypes != 0 && (c->dtypes >> dtypes[d] & 1) == 0))
                    continue;
                fine = run_point(context, op, c, dtypes[d], json) && fine;
            }
    }
    return fine;
}

static bool parse(int count, char **words, struct options *options) {
    for (int i = 1; i + 1 < count; i += 2) {
        if (is(words[i], "--backend")) options->backend = words[i + 1];
        else if (is(words[i], "--isa")) options->isa = words[i + 1];
        else if (is(words[i], "--op")) options->op = words[i + 1];
        else if (is(words[i], "--dtype")) options->dtype = words[i + 1];
        else if (is(words[i], "--json")) options->json = words[i + 1];
        else if (is(words[i], "--threads")) options->threads = atoi(words[i + 1]);
        else return false;
    }
    return count % 2 == 1;
}

int main(int count, char **words) {
    struct options options = {.backend = "cpu", .isa = "auto", .op = "all", .dtype = "all"};
    if (!parse(count, words, &options) || (!is(options.backend, "cpu") && !is(options.backend, "cuda"))) {
        fprintf(stderr,
                "usage: liger_bench [--backend cpu|cuda] [--isa NAME] [--op NAME|all] [--dtype f32|f16|bf16|all] "
                "[--threads N] [--json FILE]\n");
        return 2;
    }
    liger_context_options wanted = LIGER_CONTEXT_OPTIONS_INIT;
    liger_context *context = NULL;
    wanted.device = is(options.backend, "cuda") ? 0 : LIGER_DEVICE_CPU;
    wanted.threads = options.threads;
    for (int isa = LIGER_ISA_BASE; isa <= LIGER_ISA_NEON; isa++)
        if (is(options.isa, liger_isa_name(isa))) wanted.isa = isa;
    if (liger_context_create(&wanted, &context) != LIGER_OK) {
        fprintf(stderr, "liger_bench: %s\n", liger_last_error());
        return 1;
    }
    FILE *json = options.json ? fopen(options.json, "w") : NULL;
    if (options.json && json == NULL) {
        fprintf(stderr, "liger_bench: cannot write %s\n", options.json);
        return 1;
    }
    printf("matrix products: %s\n", liger_context_gemm_provider(context));
    if (json) fprintf(json, "[");
    const bool fine = run_all(context, &options, json);
    if (json) fprintf(json, "\n]\n");
    if (json) fclose(json);
    liger_context_destroy(context);
    return !fine;
}
