/* fuzz_noise.c - any bytes as an args struct: a status comes back, and a sentence if it is not OK; never a crash.
 *
 * Doors are what is fuzzed: the kernels behind them are replaced by ones that do nothing, because a pointer that passes
 * the door is the caller's promise, and noise promises nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "liger/core/context_state.h"
#include "liger/liger.h"
#include "tests/fuzz/fuzz.h"

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

/* ---- one input ---- */

liger_context *fuzz_stubs(void) {
    static liger_context *context;
    liger_context_options options = LIGER_CONTEXT_OPTIONS_INIT;
    options.threads = 1;
    if (context == NULL && liger_context_create(&options, &context) != LIGER_OK) abort();
    context->kernels = &stubs;
    return context;
}

/* Tensors whose sizes are few and small, so that they often fit each other and the checks behind the first are reached.
 * A struct of this library is a size, then tensors, then scalars; anything that looks like no tensor is left random. */
static void plausible_tensors(char *args, size_t size, struct choices *choices) {
    static const int64_t sizes[] = {0, 1, 2, 2, 2, 3, 4, -1, INT64_MAX, INT64_C(1) << 40};
    static _Alignas(256) char memory[1 << 16];
    const int64_t usual = choose(choices, 4) + 1;
    const int dtype = (int)choose(choices, 3) + 1, ndim = (int)choose(choices, 4) + 1;
    for (size_t at = sizeof(size_t); at + sizeof(liger_tensor) <= size; at += sizeof(liger_tensor)) {
        liger_tensor t = {.data = memory + 256 * choose(choices, 200), .dtype = dtype, .ndim = ndim};
        if (choose(choices, 8) == 0) t.data = NULL;
        if (choose(choices, 8) == 0) t.dtype = (int)choose(choices, 8);
        if (choose(choices, 6) == 0) t.ndim = (int)choose(choices, 9) - 1;
        int64_t stride = 1;
        for (int d = LIGER_MAX_DIMS - 1; d >= 0; d--) {
            t.shape[d] = choose(choices, 12) == 0 ? sizes[choose(choices, 10)] : usual;
            t.stride[d] = choose(choices, 24) == 0 ? sizes[choose(choices, 10)] : stride;
            if (d < t.ndim && t.shape[d] > 0 && t.shape[d] < 8) stride *= t.shape[d];
        }
        memcpy(args + at, &t, sizeof t);
    }
}

/* Four ways to be wrong: noise; plausible tensors with noise behind, with zeros behind, and with a few bytes changed. */
static void make_args(char *args, size_t size, struct choices *choices) {
    const int way = (int)choose(choices, 4);
    memset(args, 0, FUZZ_ARGS_BYTES);
    if (way <= 1)
        for (size_t i = 0; i < size; i++) args[i] = (char)choose(choices, 256);
    if (way >= 1) plausible_tensors(args, size, choices);
    size_t claimed = size;
    if (choose(choices, 8) == 0) claimed = (size_t)choose(choices, FUZZ_ARGS_BYTES + 1);
    if (choose(choices, 64) == 0) claimed = (size_t)choose(choices, INT64_MAX);
    if (way == 3)
        for (int k = 0; k < 3; k++) args[choose(choices, (int64_t)size)] = (char)choose(choices, 256);
    memcpy(args, &claimed, sizeof claimed);
}

bool fuzz_noise(const struct door_entry *function, struct choices *choices) {
    static _Alignas(16) char args[FUZZ_ARGS_BYTES];
    size_t bytes;
    make_args(args, function->door->size, choices);
    const bool query =
        function->workspace == NULL || fuzz_answered(function->name, function->workspace(fuzz_stubs(), args, &bytes));
    return fuzz_answered(function->name, function->call(fuzz_stubs(), args, NULL)) && query;
}

bool fuzz_nothing(const struct door_entry *function) {
    static _Alignas(16) char args[FUZZ_ARGS_BYTES];
    memset(args, 0, sizeof args);
    memcpy(args, &function->door->size, sizeof function->door->size);
    const liger_status no_args = function->call(fuzz_stubs(), NULL, NULL);
    const liger_status no_context = function->call(NULL, args, NULL);
    return fuzz_answered(function->name, no_args) && fuzz_answered(function->name, no_context) && no_args != LIGER_OK &&
           no_context != LIGER_OK;
}
