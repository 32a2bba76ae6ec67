/* fuzz.h - the parts of the fuzzer: where its choices come from, what it calls, and its two ways of calling. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "liger/core/context.h"
#include "tests/harness/op_cases.h"
#include "tests/harness/random.h"

enum { FUZZ_ARGS_BYTES = 65536 }; /* the largest size that an args struct may claim */

/* ---- choices: bytes of somebody who looks for coverage, then a random stream ---- */

struct choices {
    const uint8_t *bytes;
    size_t left;
    struct random_stream stream;
};

/* [0, bound); 0 if bound <= 0 */
int64_t choose(struct choices *choices, int64_t bound);

/* ---- the public functions ---- */

struct fuzz_function {
    const char *name;
    size_t size; /* of its args struct */
    liger_status (*call)(liger_context *context, const void *args, liger_stream stream);
    liger_status (*workspace)(liger_context *context, const void *args, size_t *bytes); /* NULL: it needs none */
    const struct op_cases *cases;
};
/* All of them, those with cases; the count into *count. */
const struct fuzz_function *fuzz_functions(int *count);

/* What the cases of `function` would call it with: its args struct into `args`, of FUZZ_ARGS_BYTES. Nothing is called. */
bool fuzz_capture(const struct fuzz_function *function, const struct op_call *call, void *args);

/* False, with a line of output, unless the status is one of the library's, and there is a sentence if it is not OK. */
bool fuzz_answered(const char *function, liger_status status);

/* A context whose kernels do nothing. */
liger_context *fuzz_stubs(void);

/* ---- noise: any bytes, against doors without kernels ---- */

bool fuzz_noise(const struct fuzz_function *function, struct choices *choices);
bool fuzz_nothing(const struct fuzz_function *function); /* NULL for the args, NULL for the context */

/* ---- calls: right ones, and right ones with a few things changed, against the kernels of the CPU ---- */

struct fuzz_counts {
    long made, succeeded, refused;
    long
        without_memory; /* of those: so changed that a tensor leaves the memory there is; kernels that do nothing get it */
    long twice;         /* made again in another context with the same result */
};

bool fuzz_call(const struct fuzz_function *function, struct choices *choices, struct fuzz_counts *counts);
/* Prints the call that is being made. */
void fuzz_describe(void);
void fuzz_calls_end(void);

#endif
