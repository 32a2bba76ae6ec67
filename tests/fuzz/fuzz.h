/* fuzz.h - the parts of the fuzzer: where its choices come from, what it calls, and its two ways of calling. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "liger/core/context.h"
#include "tests/harness/door_list.h"
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

/* False, with a line of output, unless the status is one of the library's, and there is a sentence if it is not OK. */
bool fuzz_answered(const char *function, liger_status status);

/* A context whose kernels do nothing. */
liger_context *fuzz_stubs(void);

/* ---- noise: any bytes, against doors without kernels ---- */

bool fuzz_noise(const struct door_entry *function, struct choices *choices);
bool fuzz_nothing(const struct door_entry *function); /* NULL for the args, NULL for the context */

/* ---- calls: right ones, and right ones with a few things changed, against the kernels of the CPU ---- */

struct fuzz_counts {
    long made, succeeded, refused;
    long
        without_memory; /* of those: so changed that a tensor leaves the memory there is; kernels that do nothing get it */
    long twice;         /* made again in another context with the same result */
};

bool fuzz_call(const struct door_entry *function, const struct op_cases *cases, struct choices *choices,
               struct fuzz_counts *counts);
/* Prints the call that is being made. */
void fuzz_describe(void);
void fuzz_calls_end(void);

#endif
