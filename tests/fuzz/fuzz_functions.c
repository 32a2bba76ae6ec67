/* fuzz_functions.c - every public function of ops.def, and how to have its args struct from its cases.
 *
 * The cases fill an args struct and call the function. The linker sends that call here (--wrap), where the struct can be
 * kept instead: the fuzzer knows no struct's fields. */
#include <stdio.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

static void *capture_to;
static size_t capture_size;

/* Weak, because a kernel slot may have no public function and a function no workspace. An args struct goes by its address:
 * its type has no name here. */
#define FUNCTION(function)                                                                                             \
    extern const struct op_cases function##_cases __attribute__((weak));                                               \
    liger_status liger_##function##_workspace(liger_context *, const void *, size_t *) __attribute__((weak));          \
    liger_status __real_liger_##function(liger_context *, const void *, liger_stream) __attribute__((weak));           \
    liger_status __wrap_liger_##function(liger_context *, const void *, liger_stream);                                 \
    liger_status __wrap_liger_##function(liger_context *context, const void *args, liger_stream stream) {              \
        if (capture_to == NULL) return __real_liger_##function(context, args, stream);                                 \
        memcpy(&capture_size, args, sizeof capture_size);                                                              \
        memcpy(capture_to, args, capture_size);                                                                        \
        return LIGER_OK;                                                                                               \
    }
#define LIGER_OP(op, room) FUNCTION(op##_forward) FUNCTION(op##_backward)
#define LIGER_COMPOSITE(op, room) FUNCTION(op##_forward) FUNCTION(op##_backward)
#define LIGER_KERNEL(kernel, room) FUNCTION(kernel)
#include "liger/ops/ops.def"
#undef FUNCTION

#define FUNCTION(function) {#function, 0, __real_liger_##function, liger_##function##_workspace, &function##_cases},
static const struct fuzz_function all[] = {
#include "liger/ops/ops.def"
};

bool fuzz_capture(const struct fuzz_function *function, const struct op_call *call, void *args) {
    capture_to = args;
    capture_size = 0;
    const liger_status status = function->cases->call(fuzz_stubs(), call, NULL);
    capture_to = NULL;
    return status == LIGER_OK && capture_size > sizeof(size_t);
}

const struct fuzz_function *fuzz_functions(int *count) {
    static struct fuzz_function known[sizeof all / sizeof all[0]];
    static _Alignas(16) char args[FUZZ_ARGS_BYTES];
    *count = 0;
    for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) {
        const struct op_call nothing = {.c = all[k].cases ? all[k].cases->cases[0] : (struct op_case){.label = ""}};
        if (all[k].call == NULL || all[k].cases == NULL || !fuzz_capture(&all[k], &nothing, args)) continue;
        known[*count] = all[k];
        known[(*count)++].size = capture_size;
    }
    return known;
}
