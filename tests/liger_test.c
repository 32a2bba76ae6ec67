/* liger_test.c - the test driver: every function of ops.def, in every mode, on every backend this machine has.
 *
 *   liger_test [--backend cpu|cuda] [--isa NAME|all] [--op NAME|all] [--mode NAME|all] [--quick] [--times] [--list]
 *
 * NAME of --op may be a function (rms_norm_forward), an operator (rms_norm) or `core`: what belongs to no operator. Mode
 * history runs all of them together; `each` is all modes but that one. With --times each line says what processor time it
 * took. The last line is "N passed, N failed"; what did not apply is counted before it, by reason. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "liger/core/context_state.h"
#include "tests/core_checks.h"
#include "tests/harness/host_pool.h"
#include "tests/harness/kept_runs.h"
#include "tests/harness/modes.h"
#include "tests/harness/op_list.h"
#include "tests/harness/watched_kernels.h"

struct options {
    const char *backend, *isa, *op, *mode;
    bool quick, times, list;
};

static bool is(const char *a, const char *b) { return strcmp(a, b) == 0; }

static int usage(const char *wrong) {
    fprintf(stderr,
            "liger_test: %s\nusage: liger_test [--backend cpu|cuda] [--isa NAME|all] [--op NAME|all] "
            "[--mode NAME|all] [--quick] [--times] [--list]\nmodes: each history",
            wrong);
    for (int m = 0; m < test_mode_count; m++) fprintf(stderr, " %s", test_modes[m].name);
    fprintf(stderr, "\n");
    return 2;
}

static bool known_mode(const char *name) {
    bool known = is(name, "all") || is(name, "each") || is(name, "history");
    for (int m = 0; m < test_mode_count; m++) known = known || is(name, test_modes[m].name);
    return known;
}

/* How exact a kernel is, over several draws of the cases of parity, is asked of the other builds: a sanitized one is asked about
 * memory and threads, unless this mode is named. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = true };
#else
enum { SANITIZED = false };
#endif

static bool mode_wanted(const struct options *options, const char *mode) {
    if (SANITIZED && is(mode, "naive") && !is(options->mode, mode)) return false;
    return is(options->mode, "all") || is(options->mode, mode) || (is(options->mode, "each") && !is(mode, "history"));
}

static bool op_wanted(const char *wanted, const char *function) {
    const size_t length = strlen(wanted);
    if (is(wanted, "all") || is(wanted, function)) return true;
    return strncmp(wanted, function, length) == 0 &&
           (is(function + length, "_forward") || is(function + length, "_backward"));
}

static bool known_op(const char *name) {
    bool known = op_wanted(name, "core");
    for (int k = 0; k < OP_COUNT(op_list); k++) known = known || op_wanted(name, op_list[k].name);
    return known;
}

/* ---- contexts ---- */

static liger_context *context_of(int device, int isa, int threads, bool lent_pool) {
    liger_context_options options = LIGER_CONTEXT_OPTIONS_INIT;
    options.device = device;
    options.isa = isa;
    options.threads = threads;
    if (lent_pool) {
        options.parallel_for = host_pool_backwards;
        options.thread_count = host_pool_threads;
    }
    liger_context *context = NULL;
    if (liger_context_create(&options, &context) != LIGER_OK) return NULL;
    return context;
}

/* The contexts of a CPU backend: number 0 is the plain one. */
static const struct {
    int threads;
    bool lent_pool;
    const char *name;
} cpu_contexts[] = {
    {3, false, "with 3 threads"}, {1, false, "with 1 thread"}, {2, false, "with 2 threads"},
    {8, false, "with 8 threads"}, {0, true, "in a lent pool"},
};

static liger_context *open_cpu(const void *isa, int which) {
    return context_of(LIGER_DEVICE_CPU, *(const int *)isa, cpu_contexts[which].threads, cpu_contexts[which].lent_pool);
}

/* There is nothing about a context of a GPU to choose; two of them share the device. */
static liger_context *open_cuda(const void *unused, int which) {
    (void)unused, (void)which;
    return context_of(0, LIGER_ISA_AUTO, 0, false);
}

static bool setup_cpu(struct mode_setup *setup, int isa, bool quick) {
    *setup = (struct mode_setup){.context = open_cpu(&isa, 0), .quick = quick};
    setup->single = open_cpu(&isa, 1);
    setup->twin_count = OP_COUNT(cpu_contexts) - 1;
    bool complete = setup->context != NULL && setup->single != NULL;
    for (int k = 0; k < setup->twin_count; k++) {
        setup->twins[k] = open_cpu(&isa, k + 1);
        setup->twin_names[k] = cpu_contexts[k + 1].name;
        complete = complete && setup->twins[k] != NULL;
    }
    return complete;
}

static void close_setup(struct mode_setup *setup) {
    device_stream_close(setup->stream);
    liger_context_destroy(setup->context);
    liger_context_destroy(setup->single);
    for (int k = 0; k < setup->twin_count; k++) liger_context_destroy(setup->twins[k]);
}

/* ---- the run ---- */

static void run_function(const struct mode_setup *setup, const struct options *options, const struct op_entry *entry,
                         bool first_backend, struct report *report) {
    for (int m = 0; m < test_mode_count; m++) {
        const struct test_mode *mode = &test_modes[m];
        if (!mode_wanted(options, mode->name)) continue;
        if (mode->once && !first_backend) continue;
        report_begin(report);
        modes_run(mode, setup, entry->cases, report);
        report_end(report, entry->name, mode->name, mode->once ? "reference" : liger_context_backend(setup->context));
    }
}

/* The matrix instruction sets inherit most kernels from AVX-512: a function that came to no other kernels on the set before
 * needs no second run. */
struct sets_run {
    const liger_kernel_table *before; /* NULL: none */
    kernel_set called[OP_COUNT(op_list)];
};

static bool has_run(const struct sets_run *sets, int k) {
    return sets->called[k] != 0 && same_kernels(sets->called[k], sets->before, watched_kernels());
}

static void run_backend(const struct mode_setup *setup, const struct options *options, bool first_backend,
                        struct sets_run *sets, struct report *report) {
    int same = 0;
    for (int k = 0; k < OP_COUNT(op_list); k++) {
        if (!op_wanted(options->op, op_list[k].name)) continue;
        if (has_run(sets, k)) {
            same++;
            continue;
        }
        if (op_list[k].cases != NULL) {
            take_called_kernels();
            run_function(setup, options, &op_list[k], first_backend, report);
            sets->called[k] = take_called_kernels();
        } else if (!op_list[k].internal && first_backend) {
            report_begin(report);
            report_fail(report, "%s has a row in ops.def but no cases", op_list[k].name);
        }
    }
    if (same > 0)
        printf("%s: %d functions have the kernels of %s, which ran\n", liger_context_backend(setup->context), same,
               sets->before->backend);
}

static bool same_slot(const struct op_entry *entry, const liger_kernel_table *a, const liger_kernel_table *b) {
    if (entry->slot == 0 || a == NULL || b == NULL) return false;
    return memcmp((const char *)a + entry->slot, (const char *)b + entry->slot, sizeof(liger_status(*)(void))) == 0;
}

/* Before anything else has run on the backend. Functions with a kernel that a later table has too are left to that one. */
static void run_history(const struct history_backend *backend, const struct options *options,
                        const liger_kernel_table *here, const liger_kernel_table *later, struct report *report) {
    const struct op_cases *wanted[OP_COUNT(op_list)];
    int count = 0;
    if (!mode_wanted(options, "history")) return;
    for (int k = 0; k < OP_COUNT(op_list); k++)
        if (op_list[k].cases != NULL && op_wanted(options->op, op_list[k].name) && !same_slot(&op_list[k], here, later))
            wanted[count++] = op_list[k].cases;
    if (count > 0) mode_history(backend, wanted, count, report);
}

static const liger_kernel_table *kernels_of(int isa) {
    liger_context *context = isa == LIGER_ISA_AUTO ? NULL : open_cpu(&isa, 0);
    const liger_kernel_table *kernels = context ? context->kernels : NULL;
    liger_context_destroy(context);
    return kernels;
}

static void run_cpu_isa(const struct options *options, int isa, int last, bool first, struct sets_run *sets,
                        struct report *report) {
    char name[32];
    snprintf(name, sizeof name, "cpu-%s", liger_isa_name(isa));
    const struct history_backend backend = {name, open_cpu, &isa, OP_COUNT(cpu_contexts), true, options->quick};
    struct mode_setup setup;
    run_history(&backend, options, kernels_of(isa), isa == last ? NULL : kernels_of(last), report);
    if (setup_cpu(&setup, isa, options->quick)) {
        watch_kernels(setup.context);
        run_backend(&setup, options, first, sets, report);
        sets->before = watched_kernels();
    } else {
        report_fail(report, "context for %s: %s", liger_isa_name(isa), liger_last_error());
    }
    close_setup(&setup);
}

static int run_cpu(const struct options *options, struct report *report) {
    struct sets_run sets = {NULL, {0}};
    int wanted[LIGER_ISA_NEON + 1], count = 0;
    bool known = is(options->isa, "all");
    for (int isa = LIGER_ISA_BASE; isa <= LIGER_ISA_NEON; isa++) {
        const bool named = is(options->isa, liger_isa_name(isa));
        known = known || named;
        if (!named && !is(options->isa, "all")) continue;
        if (liger_has_isa(isa)) wanted[count++] = isa;
        else printf("%s: not here (this processor or this build lacks it)\n", liger_isa_name(isa));
    }
    for (int k = 0; k < count; k++) run_cpu_isa(options, wanted[k], wanted[count - 1], k == 0, &sets, report);
    if (!known) return usage("no such --isa");
    if (count == 0) report_fail(report, "nothing was run: this machine has no %s", options->isa);
    return 0;
}

static void run_cuda(const struct options *options, struct report *report) {
    const struct history_backend backend = {"cuda", open_cuda, NULL, 2, false, options->quick};
    struct sets_run sets = {NULL, {0}};
    run_history(&backend, options, NULL, NULL, report);
    struct mode_setup setup = {.context = open_cuda(NULL, 0), .quick = options->quick};
    if (setup.context != NULL) setup.stream = device_stream_open(setup.context);
    if (setup.context == NULL) report_fail(report, "context for CUDA device 0: %s", liger_last_error());
    else run_backend(&setup, options, true, &sets, report);
    close_setup(&setup);
}

static bool parse(int count, char **words, struct options *options) {
    for (int i = 1; i < count; i++) {
        const char **value = NULL;
        if (is(words[i], "--quick")) options->quick = true;
        else if (is(words[i], "--times")) options->times = true;
        else if (is(words[i], "--list")) options->list = true;
        else if (is(words[i], "--backend")) value = &options->backend;
        else if (is(words[i], "--isa")) value = &options->isa;
        else if (is(words[i], "--op")) value = &options->op;
        else if (is(words[i], "--mode")) value = &options->mode;
        else return false;
        if (value != NULL && ++i >= count) return false;
        if (value != NULL) *value = words[i];
    }
    return true;
}

/* Memory of large cases stays with the process: a third of a run would go into getting the same pages again. */
enum { KEPT_BYTES = 1 << 30 };
static void keep_pages(void) {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

int main(int count, char **words) {
    struct options options = {.backend = "cpu", .isa = "all", .op = "all", .mode = "all"};
    struct report report = {0};
    if (!parse(count, words, &options)) return usage("unknown option or missing value");
    if (!known_mode(options.mode)) return usage("no such --mode");
    if (!known_op(options.op)) return usage("no such --op");
    for (int k = 0; options.list && k < OP_COUNT(op_list); k++)
        if (op_list[k].cases) printf("%s\n", op_list[k].name);
    if (options.list) return 0;
    report.times = options.times;
    keep_pages();
    kept_runs_begin((size_t)KEPT_BYTES);
    const bool core_only = is(options.op, "core");
    if (is(options.backend, "cuda") && !core_only) run_cuda(&options, &report);
    else if (!is(options.backend, "cuda") && !is(options.backend, "cpu")) return usage("no such --backend");
    else if (!core_only && run_cpu(&options, &report) != 0) return 2;
    if (op_wanted(options.op, "core") && is(options.mode, "all")) core_checks(&report);
    kept_runs_end();
    report_reasons(&report);
    printf("%d passed, %d failed\n", report.passed, report.failed);
    return report.failed > 0 || report.passed == 0;
}
