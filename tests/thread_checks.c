/* thread_checks.c - see thread_checks.h. On the CPU only, with pools of the library's own. */
#define _GNU_SOURCE
#include "tests/thread_checks.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "liger/core/context.h"
#include "liger/core/half.h"
#include "liger/cpu/float_mode.h"
#include "liger/cpu/parallel.h"
#include "liger/ops/scale/scale.h"

enum { THREADS = 3 };

static void expect(struct report *report, bool fact, const char *what, const char *where) {
    if (fact) report_pass(report);
    else report_fail(report, "%s (%s)", what, where);
}

static liger_context *open_context(int32_t isa) {
    liger_context_options options = LIGER_CONTEXT_OPTIONS_INIT;
    liger_context *context = NULL;
    options.isa = isa;
    options.threads = THREADS;
    return liger_context_create(&options, &context) == LIGER_OK ? context : NULL;
}

/* ---- float mode --------------------------------------------------------------------------------------------------- */

/* The mode of a thread on which torch.set_flush_denormal(True) was called; the present one where there is no such thing. */
static uint64_t flushing(void) {
#if defined(__x86_64__)
    return float_mode() | 0x8040; /* FTZ, DAZ */
#elif defined(__aarch64__)
    return float_mode() | 1u << 24;
#else
    return float_mode();
#endif
}

/* y = x, converted: in one call, which is whole vectors but for the end, or element by element, which is all ends. */
static bool convert(liger_context *context, liger_dtype from, liger_dtype to, const void *x, void *y, int64_t count,
                    int64_t at_once) {
    const int64_t in = (int64_t)liger_dtype_size(from), out = (int64_t)liger_dtype_size(to);
    for (int64_t i = 0; i < count; i += at_once) {
        const int64_t n[] = {count - i < at_once ? count - i : at_once};
        liger_scale_args args = LIGER_SCALE_ARGS_INIT;
        args.x = liger_tensor_contiguous((char *)x + i * in, (int)from, 1, n);
        args.y = liger_tensor_contiguous((char *)y + i * out, (int)to, 1, n);
        if (liger_scale(context, &args, NULL) != LIGER_OK) return false;
    }
    return true;
}

/* Every f16 value, then as many f32 values around those at which the rounding to f16 turns. */
enum { HALVES = 1 << 16, SINGLES = 4 * HALVES };

static void draw(uint16_t *halves, float *singles) {
    for (uint32_t h = 0; h < HALVES; h++) {
        const float value = f32_from_f16((uint16_t)h), next = f32_from_f16((uint16_t)(h + 1));
        const uint32_t middle = bits_of_f32(value) / 2 + bits_of_f32(next) / 2;
        halves[h] = (uint16_t)h;
        singles[4 * h] = value;
        for (uint32_t k = 0; k < 3; k++) singles[4 * h + 1 + k] = f32_of_bits(middle - 1 + k);
    }
}

/* One value has one f16 and one f32 form, wherever in a row it stands and whatever becomes of subnormals on the thread. */
static void conversions_agree(struct report *report, int32_t isa) {
    static uint16_t halves[HALVES], narrow[2][SINGLES];
    static float singles[SINGLES], wide[2][HALVES];
    liger_context *context = open_context(isa);
    const uint64_t usual = float_mode();
    bool fine = context != NULL;
    draw(halves, singles);
    for (int flush = 0; flush < 2 && fine; flush++)
        for (int one = 0; one < 2 && fine; one++) {
            const int first = !flush && !one; /* the run with which the others are compared */
            set_float_mode(flush ? flushing() : usual);
            fine = convert(context, LIGER_F16, LIGER_F32, halves, wide[!first], HALVES, one ? 1 : HALVES) &&
                   convert(context, LIGER_F32, LIGER_F16, singles, narrow[!first], SINGLES, one ? 1 : SINGLES);
            set_float_mode(usual);
            if (first) continue;
            const char *what = one ? (flush ? "an end, flushing" : "an end") : "a whole row, flushing";
            expect(report, memcmp(wide[0], wide[1], sizeof wide[0]) == 0, "f16 is another f32 in", what);
            expect(report, memcmp(narrow[0], narrow[1], sizeof narrow[0]) == 0, "f32 is another f16 in", what);
        }
    expect(report, fine, "conversions run", liger_isa_name(isa));
    int64_t wrong = 0;
    for (uint32_t h = 0; h < HALVES; h++) wrong += bits_of_f32(wide[0][h]) != bits_of_f32(f32_from_f16((uint16_t)h));
    expect(report, wrong == 0, "f16 to f32 by vectors and by half.h", liger_isa_name(isa));
    liger_context_destroy(context);
}

/* Twice the smallest f32, in a loop that takes several threads: all are doubled, or all are flushed. */
static void threads_take_the_callers_mode(struct report *report, int32_t isa) {
    enum { COUNT = 1 << 19 };
    liger_context *context = open_context(isa);
    float *x = malloc(COUNT * sizeof *x), *y = malloc(COUNT * sizeof *y);
    const uint64_t usual = float_mode();
    const float two = 2.0f;
    liger_scale_args args = LIGER_SCALE_ARGS_INIT;
    args.x = liger_tensor_contiguous(x, LIGER_F32, 1, (int64_t[]){COUNT});
    args.y = liger_tensor_contiguous(y, LIGER_F32, 1, (int64_t[]){COUNT});
    args.scale = liger_tensor_contiguous((float *)&two, LIGER_F32, 1, (int64_t[]){1});
    for (int64_t i = 0; i < COUNT; i++) x[i] = f32_of_bits(1);
    for (int round = 0; round < 8 && context; round++) { /* the workers start in the usual mode */
        const bool flush = round % 2;
        int64_t wrong = 0;
        set_float_mode(flush ? flushing() : usual);
        const bool done = liger_scale(context, &args, NULL) == LIGER_OK;
        const bool kept = float_mode() == (flush ? flushing() : usual);
        set_float_mode(usual);
        for (int64_t i = 0; i < COUNT; i++) wrong += bits_of_f32(y[i]) != (flush && flushing() != usual ? 0u : 2u);
        expect(report, done && kept && wrong == 0, "subnormals on every thread as on the caller's",
               liger_isa_name(isa));
    }
    free(x), free(y);
    liger_context_destroy(context);
}

/* ---- fork --------------------------------------------------------------------------------------------------------- */

static void add_index(void *argument, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) atomic_fetch_add((atomic_int_fast64_t *)argument, i);
}

/* A loop on the context's pool. */
static bool loops(liger_context *context) {
    atomic_int_fast64_t sum = 0;
    liger_parallel_for(context, 1000, 10, add_index, &sum);
    return atomic_load(&sum) == 1000 * 999 / 2;
}

/* Whether a child, and `depth` generations of its own, can use the contexts of this process. A child that hangs is ended by
 * its alarm. */
static bool child_loops(liger_context *const *contexts, int count, int depth) {
    const pid_t child = fork();
    if (child == 0) {
        bool fine = true;
        alarm(60);
        for (int k = 0; k < count; k++) fine = loops(contexts[k]) && fine;
        if (depth > 0) fine = child_loops(contexts, count, depth - 1) && loops(contexts[0]) && fine;
        for (int k = 0; k < count; k++) liger_context_destroy(contexts[k]);
        _exit(fine ? 0 : 1);
    }
    int status = -1;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

struct busy {
    liger_context *context;
    atomic_bool inside, stop;
};

static void stay(void *argument, int64_t begin, int64_t end) {
    struct busy *busy = argument;
    (void)begin, (void)end;
    atomic_store(&busy->inside, true);
    while (!atomic_load(&busy->stop)) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static void *be_busy(void *argument) {
    struct busy *busy = argument;
    liger_parallel_for(busy->context, THREADS, 1, stay, busy);
    return NULL;
}

static void forks(struct report *report) {
#if defined(__SANITIZE_THREAD__)
    report_not_applicable(report, "fork: ThreadSanitizer follows no child that starts threads");
    return;
#endif
    if (getenv("LIGER_TEST_EMULATED")) {
        report_not_applicable(report, "fork: an emulator of user programs aborts in the child of one with threads");
        return;
    }
    liger_context *contexts[] = {open_context(LIGER_ISA_AUTO), open_context(LIGER_ISA_AUTO)};
    expect(report, contexts[0] && contexts[1], "contexts", "fork");
    if (!contexts[0] || !contexts[1]) return;
    expect(report, child_loops(contexts, 2, 1), "a child computes", "fork before the first loop");
    expect(report, loops(contexts[0]), "a parent computes", "after its fork");
    expect(report, child_loops(contexts, 2, 2), "a child computes", "one pool has run, one has not");
    struct busy busy = {.context = contexts[0]};
    pthread_t thread;
    const bool started = pthread_create(&thread, NULL, be_busy, &busy) == 0;
    while (started && !atomic_load(&busy.inside)) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    expect(report, started && child_loops(contexts, 2, 1), "a child computes", "another thread was inside a loop");
    atomic_store(&busy.stop, true);
    if (started) pthread_join(thread, NULL);
    expect(report, loops(contexts[0]) && loops(contexts[1]), "a parent computes", "after all forks");
    for (int k = 0; k < 2; k++) liger_context_destroy(contexts[k]);
}

void thread_checks(struct report *report) {
    for (int32_t isa = LIGER_ISA_BASE; isa <= LIGER_ISA_NEON; isa++) {
        if (!liger_has_isa(isa)) continue;
        report_begin(report);
        conversions_agree(report, isa);
        threads_take_the_callers_mode(report, isa);
        report_end(report, "core", "float mode", liger_isa_name(isa));
    }
    report_begin(report);
    forks(report);
    report_end(report, "core", "fork", "host");
}
