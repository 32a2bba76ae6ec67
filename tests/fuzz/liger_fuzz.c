/* liger_fuzz.c - calls that are right, calls that are spoiled, and noise: a status comes back, and a sentence if it is not
 * OK; nothing is written that should not be, and what a call gives depends on nothing but the call. Meant to be run under
 * AddressSanitizer and UndefinedBehaviorSanitizer too.
 *
 *   liger_fuzz [ROUNDS [SEED]]            with -DLIGER_LIBFUZZER=1 and -fsanitize=fuzzer: libFuzzer drives it */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "liger/core/context_state.h"
#include "tests/fuzz/fuzz.h"
#include "tests/harness/op_list.h"

int64_t choose(struct choices *choices, int64_t bound) {
    uint64_t bits = 0;
    if (choices->left == 0) return random_below(&choices->stream, bound);
    for (uint64_t most = bound > 0 ? (uint64_t)bound - 1 : 0; most > 0 && choices->left > 0; most >>= 8) {
        bits = bits << 8 | *choices->bytes++;
        choices->left--;
    }
    return bound <= 0 ? 0 : (int64_t)(bits % (uint64_t)bound);
}

bool fuzz_answered(const char *function, liger_status status) {
    const bool known = strcmp(liger_status_name(status), "unknown status") != 0;
    const bool explained = status == LIGER_OK || liger_last_error()[0] != 0;
    if (!known || !explained)
        printf("FAILED %s: status %d, message \"%s\"\n", function, (int)status, liger_last_error());
    return known && explained;
}

static const struct op_cases *cases_of(const struct door_entry *function) {
    for (int k = 0; k < OP_COUNT(op_list); k++)
        if (strcmp(op_list[k].name, function->name) == 0) return op_list[k].cases;
    return NULL;
}

/* Of the rows of ops.def the public functions. */
static bool is_public(const struct door_entry *function) { return function->call != NULL && function->door != NULL; }

#ifdef LIGER_LIBFUZZER

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count) {
    struct choices choices = {.bytes = bytes, .left = count, .stream = random_start(1, 0)};
    struct fuzz_counts counts = {0};
    const struct door_entry *function = &door_list[choose(&choices, door_count)];
    if (!is_public(function)) return 0;
    const bool fine = choose(&choices, 4) ? fuzz_call(function, cases_of(function), &choices, &counts)
                                          : fuzz_noise(function, &choices);
    if (!fine) abort();
    return 0;
}

#else

enum { ROUNDS = 1500, NOISE = 4 /* rounds of noise for each round of calls */ };

/* What was called when a signal came. */
static const char *current = "nothing yet";
static long current_round;

static void on_signal(int number) {
    signal(number, SIG_DFL);
    printf("FAILED %s, round %ld: signal %d\n", current, current_round, number);
    fuzz_describe(); /* printf is not for handlers, but this is the end anyway */
    fflush(stdout);
    raise(number);
}

/* A sanitizer says more. */
static void name_the_culprit(void) {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    signal(SIGSEGV, on_signal);
    signal(SIGBUS, on_signal);
    signal(SIGFPE, on_signal);
    signal(SIGILL, on_signal);
#else
    (void)on_signal;
#endif
}

/* A third at least must have succeeded: a fuzzer whose calls are refused tests its own mistakes. */
static bool report(const char *name, const struct fuzz_counts *c) {
    const bool enough = c->succeeded * 3 >= c->made && c->made > 0;
    printf("%-30s %6ld calls: %6ld succeeded (%2ld %%), %5ld refused, %5ld by the door alone; %6ld made twice%s\n",
           name, c->made, c->succeeded, c->made ? c->succeeded * 100 / c->made : 0, c->refused, c->without_memory,
           c->twice, enough ? "" : "   FAILED: less than a third succeeded");
    return enough;
}

static long passed, failed;

static void fuzz(const struct door_entry *function, long rounds, uint64_t seed) {
    const struct op_cases *cases = cases_of(function);
    struct fuzz_counts counts = {0};
    current = function->name;
    for (long round = 0; cases != NULL && round < rounds * (1 + NOISE); round++) {
        struct choices choices = {.stream = random_start(seed, (uint64_t)round)};
        current_round = round;
        const bool fine =
            round % (1 + NOISE) ? fuzz_noise(function, &choices) : fuzz_call(function, cases, &choices, &counts);
        passed += fine;
        failed += !fine;
        if (!fine) printf("    in round %ld\n", round);
    }
    failed += !fuzz_nothing(function);
    failed += !report(function->name, &counts);
}

int main(int count, char **words) {
    const long rounds = count > 1 ? atol(words[1]) : ROUNDS;
    const uint64_t seed = count > 2 ? strtoull(words[2], NULL, 0) : 1;
    name_the_culprit();
    for (int f = 0; f < door_count; f++)
        if (is_public(&door_list[f])) fuzz(&door_list[f], rounds, seed + (uint64_t)f);
    fuzz_calls_end();
    liger_context_destroy(fuzz_stubs());
    printf("%ld passed, %ld failed\n", passed, failed);
    return failed > 0 || passed == 0;
}

#endif
