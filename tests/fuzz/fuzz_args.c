/* fuzz_args.c - any bytes as an args struct: a status comes back, and a sentence if it is not OK; never a crash.
 *
 * Doors are what is fuzzed: the kernels behind them are replaced by ones that do nothing, because a pointer that passes
 * the door is the caller's promise. Meant to be run under AddressSanitizer and UndefinedBehaviorSanitizer too.
 *
 *   liger_fuzz [ROUNDS [SEED]]            with -DLIGER_LIBFUZZER=1 and -fsanitize=fuzzer: libFuzzer drives it */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "liger/core/context_state.h"
#include "liger/liger.h"
#include "tests/harness/random.h"

enum { ARGS_BYTES = 65536 }; /* the largest size that an args struct may claim */

/* ---- kernels that do nothing ---- */

#define STUB(slot)                                                                                                     \
    static liger_status slot##_stub(liger_context *context, const struct slot##_problem *problem,                      \
                                    liger_stream stream) {                                                             \
        (void)context, (void)problem, (void)stream;                                                                    \
        return LIGER_OK;                                                                                               \
    }
#define LIGER_OP(op, room) STUB(op##_forward) STUB(op##_backward)
#define LIGER_KERNEL(kernel, room) STUB(kernel)
#define LIGER_COMPOSITE(op, room)
#include "liger/ops/ops.def"
#undef LIGER_OP
#undef LIGER_KERNEL
#undef LIGER_COMPOSITE

static const liger_kernel_table stubs = {
    .backend = "stubs",
#define LIGER_OP(op, room) .op##_forward = op##_forward_stub, .op##_backward = op##_backward_stub,
#define LIGER_KERNEL(kernel, room) .kernel = kernel##_stub,
#define LIGER_COMPOSITE(op, room)
#include "liger/ops/ops.def"
#undef LIGER_OP
#undef LIGER_KERNEL
#undef LIGER_COMPOSITE
};

/* ---- every public function; workspace queries are weak because not every function has one ---- */

#define FUNCTION(name)                                                                                                 \
    liger_status liger_##name##_workspace(liger_context *, const liger_##name##_args *, size_t *)                      \
        __attribute__((weak));                                                                                         \
    static liger_status call_##name(liger_context *context, const void *args) {                                        \
        return liger_##name(context, args, NULL);                                                                      \
    }                                                                                                                  \
    static liger_status query_##name(liger_context *context, const void *args) {                                       \
        size_t bytes;                                                                                                  \
        return liger_##name##_workspace ? liger_##name##_workspace(context, args, &bytes) : LIGER_OK;                  \
    }
#define LIGER_OP(op, room) FUNCTION(op##_forward) FUNCTION(op##_backward)
#define LIGER_KERNEL(kernel, room)
#define LIGER_COMPOSITE(op, room) FUNCTION(op##_forward) FUNCTION(op##_backward)
#include "liger/ops/ops.def"
#undef LIGER_OP
#undef LIGER_COMPOSITE

#define ROW(name) {#name, sizeof(liger_##name##_args), call_##name, query_##name},
#define LIGER_OP(op, room) ROW(op##_forward) ROW(op##_backward)
#define LIGER_COMPOSITE(op, room) ROW(op##_forward) ROW(op##_backward)
static const struct {
    const char *name;
    size_t size;
    liger_status (*call)(liger_context *, const void *);
    liger_status (*query)(liger_context *, const void *);
} functions[] = {
#include "liger/ops/ops.def"
};
enum { FUNCTIONS = sizeof functions / sizeof functions[0] };

/* ---- one input ---- */

static bool answered(const char *name, liger_status status) {
    const bool known = strcmp(liger_status_name(status), "unknown status") != 0;
    const bool explained = status == LIGER_OK || liger_last_error()[0] != 0;
    if (!known || !explained) printf("FAILED %s: status %d, message \"%s\"\n", name, (int)status, liger_last_error());
    return known && explained;
}

static liger_context *stub_context(void) {
    static liger_context *context;
    liger_context_options options = LIGER_CONTEXT_OPTIONS_INIT;
    options.threads = 1;
    if (context == NULL && liger_context_create(&options, &context) != LIGER_OK) abort();
    context->kernels = &stubs;
    return context;
}

static liger_status last_status;

static bool fuzz_one(size_t function, const void *args) {
    liger_context *context = stub_context();
    const bool query = answered(functions[function].name, functions[function].query(context, args));
    last_status = functions[function].call(context, args);
    return answered(functions[function].name, last_status) && query;
}

#ifdef LIGER_LIBFUZZER

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count) {
    static _Alignas(16) char args[ARGS_BYTES];
    if (count < 1) return 0;
    memset(args, 0, sizeof args);
    memcpy(args, bytes + 1, count - 1 < sizeof args ? count - 1 : sizeof args);
    if (!fuzz_one(bytes[0] % FUNCTIONS, args)) abort();
    return 0;
}

#else

/* Tensors whose sizes are few and small, so that they often fit each other and the checks behind the first are reached.
 * A struct of this library is a size, then tensors, then scalars; anything that looks like no tensor is left random. */
static void plausible_tensors(char *args, size_t size, struct random_stream *stream) {
    static const int64_t sizes[] = {0, 1, 2, 2, 2, 3, 4, -1, INT64_MAX, INT64_C(1) << 40};
    static _Alignas(256) char memory[1 << 16];
    const int64_t usual = random_below(stream, 4) + 1;
    const int dtype = (int)random_below(stream, 3) + 1, ndim = (int)random_below(stream, 4) + 1;
    for (size_t at = sizeof(size_t); at + sizeof(liger_tensor) <= size; at += sizeof(liger_tensor)) {
        liger_tensor t = {.data = memory + 256 * random_below(stream, 200), .dtype = dtype, .ndim = ndim};
        if (random_below(stream, 8) == 0) t.data = NULL;
        if (random_below(stream, 8) == 0) t.dtype = (int)random_below(stream, 8);
        if (random_below(stream, 6) == 0) t.ndim = (int)random_below(stream, 9) - 1;
        int64_t stride = 1;
        for (int d = LIGER_MAX_DIMS - 1; d >= 0; d--) {
            t.shape[d] = random_below(stream, 12) == 0 ? sizes[random_below(stream, 10)] : usual;
            t.stride[d] = random_below(stream, 24) == 0 ? sizes[random_below(stream, 10)] : stride;
            if (d < t.ndim && t.shape[d] > 0 && t.shape[d] < 8) stride *= t.shape[d];
        }
        memcpy(args + at, &t, sizeof t);
    }
}

/* Four ways to be wrong: noise; plausible tensors with noise behind, with zeros behind, and with a few bytes changed. */
static void make_args(char *args, size_t size, struct random_stream *stream) {
    const int way = (int)random_below(stream, 4);
    memset(args, 0, ARGS_BYTES);
    if (way <= 1)
        for (size_t i = 0; i < size; i++) args[i] = (char)random_bits(stream);
    if (way >= 1) plausible_tensors(args, size, stream);
    size_t claimed = size;
    if (random_below(stream, 8) == 0) claimed = (size_t)random_below(stream, ARGS_BYTES + 1);
    if (random_below(stream, 64) == 0) claimed = (size_t)random_bits(stream);
    if (way == 3)
        for (int k = 0; k < 3; k++) args[random_below(stream, (int64_t)size)] = (char)random_bits(stream);
    memcpy(args, &claimed, sizeof claimed);
}

int main(int count, char **words) {
    static _Alignas(16) char args[ARGS_BYTES];
    const long rounds = count > 1 ? atol(words[1]) : 20000;
    const uint64_t seed = count > 2 ? strtoull(words[2], NULL, 0) : 1;
    int passed = 0, failed = 0, accepted = 0;
    for (size_t f = 0; f < FUNCTIONS; f++) {
        for (long round = 0; round < rounds; round++) {
            struct random_stream stream = random_start(seed + f, (uint64_t)round);
            make_args(args, functions[f].size, &stream);
            const bool fine = fuzz_one(f, args);
            passed += fine;
            failed += !fine;
            accepted += last_status == LIGER_OK;
        }
        failed += !answered(functions[f].name, functions[f].call(stub_context(), NULL)) ||
                  functions[f].call(NULL, args) == LIGER_OK || functions[f].call(stub_context(), NULL) == LIGER_OK;
    }
    printf("%d of them reached the kernels\n%d passed, %d failed\n", accepted, passed, failed);
    liger_context_destroy(stub_context());
    return failed > 0;
}

#endif
