/* harness_selftest.c - every comparator must FAIL on a planted error.
 *
 * A made-up operator, y = 2·x and s = sum of each row, stands in for the library. Healthy, it passes every mode; each sick
 * variant must be caught by the modes that are there to catch it. Prints "N passed, N failed". */
#include <math.h>
#include <stdio.h>
#include <string.h>

#ifdef LIGER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include "liger/core/context_state.h"
#include "liger/core/fail.h"
#include "tests/harness/compare.h"
#include "tests/harness/finite_difference.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/host_pool.h"
#include "tests/harness/kept_runs.h"
#include "tests/harness/modes.h"
#include "tests/harness/random.h"

enum sickness {
    HEALTHY,
    OFF_BY_TWO_BUDGETS,
    WORSE_THAN_NAIVE,
    MAKES_NAN,
    LOSES_NAN,
    LEAVES_ONE_UNWRITTEN,
    WRITES_INPUT,
    WRITES_ONE_PAST,
    WRITES_ONE_BEFORE,
    READS_ONE_PAST,
    READS_ONE_BEFORE,
    WRITES_INTO_GAP,
    IGNORES_STRIDE,
    COUNTS_CALLS,
    DEPENDS_ON_THREADS,
    DEPENDS_ON_TASK_ORDER,
    SPOILS_ALIAS,
    ACCEPTS_WRONG_SHAPE,
    WRONG_STATUS,
    SILENT_ABOUT_NUMBERS,
    WRITES_THEN_REFUSES,
    WRONG_GRADIENT,
    BROKEN_PROPERTY,
    READS_OUTPUT,
    KEEPS_A_LIMIT,
    SATURATES,
    FLUSHES_SUBNORMALS,
    SUMS_IN_16_BITS,
    WANTS_LIKE_ALIGNMENT,
    OVERRUNS_WORKSPACE,
    TAKES_SHORT_WORKSPACE,
    REFUSES_EVERYTHING
};
static enum sickness sickness;

/* ---- the operator ---- */

enum { X, Y, S, TENSORS };

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    spec[X] = (struct tensor_spec){.name = "x",
                                   .kind = KIND_T,
                                   .ndim = 2,
                                   .shape = {c->size[0], c->size[1]},
                                   .gaps = true,
                                   .specials = true,
                                   .ranges = OP_EVERY_RANGE};
    spec[Y] = (struct tensor_spec){.name = "y",
                                   .role = ROLE_OUT,
                                   .kind = KIND_T,
                                   .ndim = 2,
                                   .relative = 1,
                                   .gaps = true,
                                   .shape = {c->size[0], c->size[1]}};
    spec[S] = (struct tensor_spec){.name = "s",
                                   .role = ROLE_OUT,
                                   .kind = KIND_F32,
                                   .ndim = 1,
                                   .shape = {c->size[0]},
                                   .relative = 1,
                                   .absolute = (double)c->size[1] * 8};
}

static void reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t r = 0; r < c->size[0]; r++) {
        t[S][r] = 0;
        for (int64_t k = 0; k < c->size[1]; k++) {
            t[Y][r * c->size[1] + k] = 2 * t[X][r * c->size[1] + k];
            t[S][r] += t[X][r * c->size[1] + k];
        }
    }
}

static void naive(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t r = 0; r < c->size[0]; r++) {
        float sum = 0;
        for (int64_t k = 0; k < c->size[1]; k++) {
            t[Y][r * c->size[1] + k] = 2 * t[X][r * c->size[1] + k];
            sum += (float)t[X][r * c->size[1] + k];
        }
        t[S][r] = sum;
    }
}

/* y = 2·x is also the gradient of sum of x². */
static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    double total = 0;
    for (int64_t i = 0; i < c->size[0] * c->size[1]; i++) total += t[X][i] * t[X][i];
    return sickness == WRONG_GRADIENT ? total * 1.00001 : total;
}

static const char *doubling(struct op_run *run) {
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    const double first = run->t[Y][0];
    run->t[X][0] *= 2;
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    const double wanted = sickness == BROKEN_PROPERTY ? 3 : 2;
    return run->t[Y][0] == wanted * first ? NULL
                                          : op_run_text(run, "%g is not %g times %g", run->t[Y][0], wanted, first);
}

static liger_status workspace(liger_context *context, const struct op_call *call, size_t *bytes) {
    (void)context, (void)call;
    *bytes = 300;
    return LIGER_OK;
}

static volatile double sink;

/* KEEPS_A_LIMIT: a call of a width that is new sets the limit, one of a known width relies on it. In the order of the cases
 * each width is new in its turn and the widest is the last, so that all is well. */
static struct {
    int64_t known[4], limit;
    int count;
} kept;

static bool beyond_limit(int64_t cols) {
    for (int k = 0; k < kept.count; k++)
        if (kept.known[k] == cols) return cols > kept.limit;
    kept.known[kept.count++ % 4] = cols;
    kept.limit = cols;
    return false;
}

static void note_task(void *argument, int64_t index) { *(int64_t *)argument = index; }

static liger_status check(const struct op_call *call) {
    const liger_tensor *x = &call->t[X], *y = &call->t[Y];
    if (sickness == REFUSES_EVERYTHING) return liger_fail(LIGER_ERR_UNSUPPORTED, "not today");
    if (sickness == WRITES_THEN_REFUSES && x->shape[0] != y->shape[0]) memset(y->data, 0, 4);
    if (sickness != ACCEPTS_WRONG_SHAPE && y->shape[0] != x->shape[0]) {
        const liger_status status = sickness == WRONG_STATUS ? LIGER_ERR_LAYOUT : LIGER_ERR_SHAPE;
        if (sickness == SILENT_ABOUT_NUMBERS) return liger_fail(status, "y does not fit x");
        return liger_fail(status, "y.shape[0] is %d but x.shape[0] is %d", (int)y->shape[0], (int)x->shape[0]);
    }
    LIGER_REQUIRE(call->workspace != NULL || sickness == TAKES_SHORT_WORKSPACE, LIGER_ERR_WORKSPACE,
                  "workspace is absent, but 300 bytes are needed");
    LIGER_REQUIRE((uintptr_t)call->workspace % 256 == 0 || sickness == TAKES_SHORT_WORKSPACE, LIGER_ERR_WORKSPACE,
                  "workspace must be aligned to 256 bytes");
    LIGER_REQUIRE(call->workspace_bytes >= 300 || sickness == TAKES_SHORT_WORKSPACE, LIGER_ERR_WORKSPACE,
                  "workspace has %zu bytes, but 300 are needed", call->workspace_bytes);
    return LIGER_OK;
}

static liger_status call_op(liger_context *context, const struct op_call *call, liger_stream stream) {
    static int calls;
    (void)stream;
    LIGER_TRY(check(call));
    const liger_tensor *x = &call->t[X], *y = &call->t[Y], *s = &call->t[S];
    const liger_dtype t = (liger_dtype)x->dtype;
    const int64_t rows = x->shape[0], cols = x->shape[1], size = (int64_t)liger_dtype_size(t);
    char *xs = x->data, *ys = y->data;
    if (sickness == SPOILS_ALIAS && rows > 0) format_store(t, ys, 0); /* before x is read */
    double extra = 0;
    if (sickness == READS_ONE_PAST && rows > 0) sink = format_load(t, xs + ((rows - 1) * x->stride[0] + cols) * size);
    if (sickness == READS_ONE_BEFORE && rows > 0) sink = format_load(t, xs - size);
    if (sickness == COUNTS_CALLS) extra = (double)(++calls % 2) * 0x1p-20;
    if (sickness == DEPENDS_ON_THREADS && context->thread_count == NULL) extra = context->threads * 0x1p-20;
    if (sickness == DEPENDS_ON_TASK_ORDER && context->parallel_for != NULL) {
        int64_t last = 0;
        context->parallel_for(context->user, 4, note_task, &last);
        extra = last == 3 ? 0 : 0x1p-20;
    }
    if (sickness == KEEPS_A_LIMIT && beyond_limit(cols)) extra = 0x1p-20;
    if (sickness == WANTS_LIKE_ALIGNMENT && ((uintptr_t)xs ^ (uintptr_t)ys) % 16 != 0) extra = 1;
    if (sickness == READS_OUTPUT && rows > 0) extra = format_load(LIGER_F32, s->data);
    for (int64_t r = 0; r < rows; r++) {
        double sum = extra;
        for (int64_t k = 0; k < cols; k++) {
            const double value = format_load(t, xs + (r * x->stride[0] + k) * size);
            const bool last = r == rows - 1 && k == cols - 1;
            double result = 2 * value;
            if (sickness == OFF_BY_TWO_BUDGETS && last) result *= 1 + 2.5 * format_unit(t);
            if (sickness == MAKES_NAN && last) result = NAN;
            if (sickness == LOSES_NAN && isnan(result)) result = 0;
            if (sickness == SATURATES && fabs(result) > format_largest(t)) result = copysign(format_largest(t), result);
            if (sickness == FLUSHES_SUBNORMALS && fabs(result) < format_normal(t)) result = 0;
            sum += value;
            if (sickness == SUMS_IN_16_BITS) sum = op_round(LIGER_BF16, sum * 256) / 256;
            if (sickness == LEAVES_ONE_UNWRITTEN && last) continue;
            const int64_t step = sickness == IGNORES_STRIDE ? cols : y->stride[0];
            format_store(t, ys + (r * step + k) * size, result);
        }
        if (sickness == WORSE_THAN_NAIVE) sum *= 1 + 0x7p-24;
        format_store(LIGER_F32, (char *)s->data + r * 4, sum);
    }
    if (rows == 0) return LIGER_OK;
    const int64_t end = (rows - 1) * y->stride[0] + cols;
    if (sickness == WRITES_ONE_PAST) format_store(t, ys + end * size, 1);
    if (sickness == WRITES_ONE_BEFORE) format_store(t, ys - size, 1);
    if (sickness == WRITES_INTO_GAP && rows > 1 && y->stride[0] > cols) format_store(t, ys + cols * size, 1);
    if (sickness == WRITES_INPUT) format_store(t, xs, 1);
    if (sickness == OVERRUNS_WORKSPACE) ((char *)call->workspace)[300] = 1;
    return LIGER_OK;
}

static const struct op_case cases[] = {
    {"3x5", {3, 5}}, {"1x1", {1, 1}}, {"4x8", {4, 8}}, {"empty", {0, 5}, .edge = true}};
static const struct op_alias aliases[] = {{Y, X}};
static const struct op_gradient gradients[] = {{Y, X}};
static const struct op_property properties[] = {{"doubling", doubling}};
static const struct op_provocation provocations[] = {
    {"y rows", OP_SHAPE(Y, 0, 9), LIGER_ERR_SHAPE, {"y.shape[0]", "9", "3"}}};

static const struct op_cases op = {
    .name = "double_forward",
    .tensor_count = TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .call = call_op,
    .workspace = workspace,
    .reference = reference,
    .naive = naive,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_ALIASES(aliases),
    OP_PROVOCATIONS(provocations),
    OP_PROPERTIES(properties),
};

/* ---- which mode must catch what ---- */

static const struct {
    enum sickness sickness;
    const char *what, *mode;
} expected[] = {
    {OFF_BY_TWO_BUDGETS, "two and a half budgets off", "parity"},
    {WORSE_THAN_NAIVE, "an error within the budget, but larger than a plain loop's", "naive"},
    {MAKES_NAN, "a NaN", "parity"},
    {MAKES_NAN, "a NaN", "naive"},
    {LOSES_NAN, "a NaN that is lost", "edge"},
    {LEAVES_ONE_UNWRITTEN, "an element never written", "parity"},
    {WRITES_INPUT, "an input overwritten", "parity"},
    {WRITES_ONE_PAST, "a write one past the end", "parity"},
    {WRITES_ONE_PAST, "a write one past the end", "guard"},
    {WRITES_ONE_BEFORE, "a write one before the beginning", "parity"},
    {WRITES_ONE_BEFORE, "a write one before the beginning", "guard"},
    {READS_ONE_PAST, "a read one past the end", "guard"},
    {READS_ONE_BEFORE, "a read one before the beginning", "guard"},
    {WRITES_INTO_GAP, "a write between rows", "stride"},
    {IGNORES_STRIDE, "a stride ignored", "stride"},
    {COUNTS_CALLS, "another result the second time", "determinism"},
    {DEPENDS_ON_THREADS, "a result that depends on threads", "determinism"},
    {DEPENDS_ON_TASK_ORDER, "a result that depends on the order of tasks", "determinism"},
    {SPOILS_ALIAS, "an input spoiled in place", "alias"},
    {ACCEPTS_WRONG_SHAPE, "a wrong shape accepted", "error"},
    {WRONG_STATUS, "the wrong status", "error"},
    {SILENT_ABOUT_NUMBERS, "a message without numbers", "error"},
    {WRITES_THEN_REFUSES, "an output touched by a refused call", "error"},
    {TAKES_SHORT_WORKSPACE, "a short workspace accepted", "error"},
    {WRONG_GRADIENT, "a gradient wrong in the fifth digit", "grad"},
    {BROKEN_PROPERTY, "a broken property", "property"},
    {READS_OUTPUT, "an output that is read", "parity"},
    {KEEPS_A_LIMIT, "a result that depends on what ran before", "history"},
    {COUNTS_CALLS, "a result that depends on how often", "history"},
    {DEPENDS_ON_THREADS, "a result that depends on threads", "history"},
    {REFUSES_EVERYTHING, "a refusal of valid input", "history"},
    {SATURATES, "the largest number for an infinity", "range"},
    {FLUSHES_SUBNORMALS, "zero for a subnormal number", "range"},
    {SUMS_IN_16_BITS, "a small change of a large offset lost", "range"},
    {WANTS_LIKE_ALIGNMENT, "tensors that must be aligned alike", "stride"},
    {OVERRUNS_WORKSPACE, "a workspace overrun", "parity"},
    {REFUSES_EVERYTHING, "a refusal of valid input", "parity"},
    {REFUSES_EVERYTHING, "a refusal of an empty input", "edge"},
};

static int passed, failed;

static void expect(bool fact, const char *what, const char *mode) {
    if (fact) passed++;
    else failed++;
    if (!fact) printf("FAILED %s: %s\n", mode, what);
}

static liger_context *context_of(int threads, bool lent) {
    liger_context_options options = LIGER_CONTEXT_OPTIONS_INIT;
    options.threads = threads;
    if (lent) {
        options.parallel_for = host_pool_backwards;
        options.thread_count = host_pool_threads;
    }
    liger_context *context = NULL;
    return liger_context_create(&options, &context) == LIGER_OK ? context : NULL;
}

static liger_context *open_context(const void *unused, int which) {
    (void)unused;
    return context_of(2 + which, which == 1);
}

static void run_mode(const struct mode_setup *setup, const char *mode, const struct op_cases *cases,
                     struct report *report) {
    const struct history_backend backend = {"selftest", open_context, NULL, 3, false};
    if (strcmp(mode, "history") == 0) mode_history(&backend, &cases, 1, report);
    for (int m = 0; m < test_mode_count; m++)
        if (strcmp(test_modes[m].name, mode) == 0) modes_run(&test_modes[m], setup, cases, report);
}

/* How many checks of one mode fail; -1 if it makes none. */
static int failures(const struct mode_setup *setup, const char *mode, enum sickness with) {
    struct report report = {.silent = true};
    sickness = with;
    memset(&kept, 0, sizeof kept);
    run_mode(setup, mode, &op, &report);
    sickness = HEALTHY;
    return report.passed + report.failed + report.not_applicable == 0 ? -1 : report.failed;
}

/* ---- cases that say too little ---- */

static const char *never(struct op_run *run) { return op_run_not_applicable(run, "it never does"); }

/* With one thing changed, the mode must fail; with the reason beside it, it must neither fail nor pass. */
static void check_reasons(const struct mode_setup *setup) {
    static const struct op_property idle[] = {{"idle", never}};
    struct {
        const char *mode;
        struct op_cases without, excused, both;
    } gaps[] = {{"naive", op, op, op}, {"grad", op, op, op}, {"alias", op, op, op}};
    gaps[0].without.naive = gaps[0].excused.naive = NULL;
    gaps[1].without.loss = gaps[1].excused.loss = NULL;
    gaps[2].without.alias_count = gaps[2].excused.alias_count = 0;
    gaps[0].excused.no_naive = gaps[0].both.no_naive = "a reason";
    gaps[1].excused.no_loss = gaps[1].both.no_loss = "a reason";
    gaps[2].excused.no_aliases = gaps[2].both.no_aliases = "a reason";
    for (int k = 0; k < OP_COUNT(gaps); k++) {
        struct report without = {.silent = true}, excused = without, both = without;
        run_mode(setup, gaps[k].mode, &gaps[k].without, &without);
        run_mode(setup, gaps[k].mode, &gaps[k].excused, &excused);
        run_mode(setup, gaps[k].mode, &gaps[k].both, &both);
        expect(without.failed == 1 && without.passed == 0, "something missing without a reason", gaps[k].mode);
        expect(excused.failed + excused.passed == 0 && excused.not_applicable == 1, "a reason", gaps[k].mode);
        expect(strcmp(excused.reason[0].text, "a reason") == 0 && excused.reason[0].count == 1, "its text",
               gaps[k].mode);
        expect(both.failed == 1, "something present, and a reason why not", gaps[k].mode);
    }
    struct op_cases unranged = op, idle_property = op;
    unranged.no_range[RANGE_TINY] = "a reason";
    idle_property.properties = idle;
    struct report range = {.silent = true}, property = range;
    run_mode(setup, "range", &unranged, &range);
    expect(range.failed == 1, "inputs of a range, and a reason why not", "range");
    run_mode(setup, "property", &idle_property, &property);
    expect(property.failed == 1 && property.passed == 0 && property.not_applicable > 0, "a property of no case",
           "property");
}

/* ---- the small tools ---- */

static double cube(void *argument) { return *(double *)argument * *(double *)argument * *(double *)argument; }

/* Between each two neighbours of a 16-bit format: below the middle to the one, above it to the other, on it to the even one;
 * negative numbers likewise. */
static int rounds_to_the_nearer(liger_dtype dtype) {
    int wrong = 0;
    for (uint16_t low = 0; low < (dtype == LIGER_F16 ? 0x7bff : 0x7f7f); low++) {
        const uint16_t high = (uint16_t)(low + 1), even = low % 2 ? high : low;
        const double a = format_load(dtype, &low), b = format_load(dtype, &high), middle = (a + b) / 2;
        const double asked[] = {a, nextafter(middle, a), middle, nextafter(middle, b), b};
        const double nearest[] = {a, a, format_load(dtype, &even), b, b};
        for (int k = 0; k < OP_COUNT(asked); k++)
            wrong += op_round(dtype, asked[k]) != nearest[k] || op_round(dtype, -asked[k]) != -nearest[k];
    }
    return wrong;
}

static void check_formats(void) {
    expect(rounds_to_the_nearer(LIGER_F16) == 0, "to the nearer of two neighbours (f16)", "formats");
    expect(rounds_to_the_nearer(LIGER_BF16) == 0, "to the nearer of two neighbours (bf16)", "formats");
    expect(isnan(op_round(LIGER_F16, NAN)) && op_round(LIGER_BF16, -INFINITY) == -INFINITY, "what is no number",
           "formats");
    expect(op_round(LIGER_BF16, 0x1.ffp127) == INFINITY && op_round(LIGER_F16, -0x1p1023) == -INFINITY,
           "beyond a format", "formats");

    expect(op_round(LIGER_BF16, 1 + 0x1p-8) == 1, "a tie goes to even (bf16, down)", "formats");
    expect(op_round(LIGER_BF16, 1 + 0x3p-8) == 1 + 0x1p-6, "a tie goes to even (bf16, up)", "formats");
    expect(op_round(LIGER_F16, 1 + 0x1p-11 + 0x1p-30) == 1 + 0x1p-10, "above a tie goes up (f16)", "formats");
    expect(op_round(LIGER_F16, 65519.9) == 65504 && isinf(op_round(LIGER_F16, 65520)), "the edge of f16", "formats");
    expect(op_round(LIGER_F16, 0x1p-25) == 0 && op_round(LIGER_F16, 0x1.8p-24) == 0x1p-23, "subnormals of f16",
           "formats");
    expect(op_round(LIGER_F32, 1 + 0x1p-24) == 1, "a tie goes to even (f32)", "formats");
    struct random_stream stream = random_start(1, 2);
    int same = 0, single = 0;
    for (int i = 0; i < 65536; i++) {
        const uint16_t bits = (uint16_t)i;
        uint16_t f16, bf16;
        format_store(LIGER_F16, &f16, format_load(LIGER_F16, &bits));
        format_store(LIGER_BF16, &bf16, format_load(LIGER_BF16, &bits));
        same += (f16 == bits || isnan(format_load(LIGER_F16, &bits))) &&
                (bf16 == bits || isnan(format_load(LIGER_BF16, &bits)));
        const double v = random_normal(&stream) * 0x1p-130;
        single += op_round(LIGER_F32, v) == (float)v;
    }
    expect(same == 65536, "every f16 and bf16 survives a round trip", "formats");
    expect(single == 65536, "f32 rounds as the processor does, subnormals too", "formats");
}

static void check_tools(void) {
    const struct tensor_spec spec = {.relative = 1}, exact = {.relative = 0};
    const double one = 1, near = 1 + 0x0.fp-24, far = 1 + 0x2p-24, nan = NAN, inf = INFINITY;
    expect(compare_values(&spec, LIGER_F32, LIGER_F32, 1, &near, &one).worst <= 1, "within the budget passes",
           "compare");
    expect(compare_values(&spec, LIGER_F32, LIGER_F32, 1, &far, &one).worst > 1, "two budgets fail", "compare");
    expect(compare_values(&exact, LIGER_F32, LIGER_F32, 1, &near, &one).worst > 1, "without a budget all fails",
           "compare");
    expect(compare_values(&spec, LIGER_F32, LIGER_F32, 1, &nan, &one).worst > 1, "NaN for a number fails", "compare");
    expect(compare_values(&spec, LIGER_F32, LIGER_F32, 1, &one, &nan).worst > 1, "a number for NaN fails", "compare");
    expect(compare_values(&spec, LIGER_F32, LIGER_F32, 1, &inf, &one).worst > 1, "infinity for a number fails",
           "compare");
    expect(compare_values(&spec, LIGER_F32, LIGER_F32, 1, &nan, &inf).worst > 1, "NaN for infinity fails", "compare");
    expect(compare_values(&spec, LIGER_I64, LIGER_F32, 1, &far, &one).worst > 1, "integers must be equal", "compare");
    double x = 1.5;
    const double slope = finite_difference(cube, &x, &x);
    expect(fabs(slope - 6.75) < 1e-9 && x == 1.5, "the slope of a cube", "finite difference");
}

/* ---- runs that are kept ---- */

static int references;

static void counted_reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    references++;
    reference(c, types, t);
}

/* What the reference gives for the first element of y after x[0] was moved by `by`. */
static double first_expected(const struct op_cases *counting, const struct op_case *c, uint64_t seed, double by) {
    const struct op_types types = {LIGER_F32, LIGER_F32, LIGER_I64};
    struct op_run *run = op_run_new(NULL, counting, c, types, seed);
    if (run == NULL) return NAN;
    run->t[X][0] += by;
    const double first = op_run_expect(run) ? run->expected[Y][0] : NAN;
    op_run_free(run);
    return first;
}

static void check_kept_runs(void) {
    struct op_cases counting = op;
    counting.reference = counted_reference;
    kept_runs_begin(1 << 20);
    const double first = first_expected(&counting, &cases[0], 1, 0);
    expect(first_expected(&counting, &cases[0], 1, 0) == first && references == 1, "the same again is known", "kept");
    expect(first_expected(&counting, &cases[0], 1, 1) == first + 2 && references == 2, "other values are not", "kept");
    expect(first_expected(&counting, &cases[0], 2, 0) != first && references == 3, "nor is another seed", "kept");
    struct op_case shorter = cases[0]; /* its address says nothing */
    expect(first_expected(&counting, &shorter, 1, 0) == first && references == 3, "a copy of a case is", "kept");
    shorter.size[0]--;
    first_expected(&counting, &shorter, 1, 0);
    expect(references == 4, "a case that was changed is not", "kept");
    const struct run_kind one = {&counting, cases[0], .seed = 1}, other = {&counting, shorter, .seed = 1};
    expect(kept_run_find(&one) == kept_run_find(&one) && kept_run_find(&one) != kept_run_find(&other),
           "a case that was changed has a place of its own", "kept");
    struct op_run *without =
        op_run_new(NULL, &counting, &cases[0], (struct op_types){LIGER_F32, LIGER_F32, LIGER_I64}, 1);
    if (without != NULL) {
        double *x = without->t[X], *y[OP_MAX_TENSORS] = {NULL};
        without->t[X] = NULL;
        expect(!kept_run_outputs(without, KEPT_EXPECTED, y), "nor is a run that lacks an input", "kept");
        without->t[X] = x;
    }
    op_run_free(without);
    kept_runs_end();
    expect(first_expected(&counting, &cases[0], 1, 0) == first && references == 5, "nothing is kept after the end",
           "kept");
}

/* ---- streams: on a GPU, a copy that does what no operator may ---- */

#ifdef LIGER_HAS_CUDA

static enum { IN_ORDER, ON_THE_DEFAULT_STREAM, WAITS_FOR_ITS_STREAM } stream_fault;

static void describe_copy(const struct op_case *c, struct tensor_spec *spec) {
    spec[X] = (struct tensor_spec){.name = "x", .kind = KIND_F32, .ndim = 1, .shape = {c->size[0]}};
    spec[Y] = spec[X];
    spec[Y].name = "y", spec[Y].role = ROLE_OUT;
}

static void reference_copy(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    memcpy(t[Y], t[X], (size_t)c->size[0] * sizeof(double));
}

static liger_status call_copy(liger_context *context, const struct op_call *call, liger_stream stream) {
    (void)context;
    if (stream_fault == WAITS_FOR_ITS_STREAM) cudaStreamSynchronize(stream);
    cudaMemcpyAsync(call->t[Y].data, call->t[X].data, (size_t)call->t[X].shape[0] * sizeof(float),
                    cudaMemcpyDeviceToDevice, stream_fault == ON_THE_DEFAULT_STREAM ? NULL : stream);
    return LIGER_OK;
}

static const struct op_case copy_cases[] = {{"1000", {1000}, .dtypes = 1u << LIGER_F32}};
static const struct op_cases copy = {.name = "copy",
                                     .tensor_count = 2,
                                     .describe = describe_copy,
                                     OP_CASES(copy_cases),
                                     .call = call_copy,
                                     .reference = reference_copy};

static void check_streams(void) {
    static const char *const what[] = {"work in the stream's order passes", "work on the default stream", "a wait"};
    liger_context_options options = LIGER_CONTEXT_OPTIONS_INIT;
    struct mode_setup setup = {.quick = false};
    options.device = 0;
    if (liger_context_create(&options, &setup.context) != LIGER_OK) {
        printf("mode stream was not tried: %s\n", liger_last_error());
        return;
    }
    setup.stream = device_stream_open(setup.context);
    for (stream_fault = IN_ORDER; stream_fault <= WAITS_FOR_ITS_STREAM; stream_fault++) {
        struct report report = {.silent = true};
        run_mode(&setup, "stream", &copy, &report);
        expect(report.failed == (stream_fault == IN_ORDER ? 0 : 1) && report.passed > 0, what[stream_fault], "stream");
    }
    device_stream_close(setup.stream);
    liger_context_destroy(setup.context);
}

#else

static void check_streams(void) { printf("mode stream was not tried: this build has no CUDA backend\n"); }

#endif

int main(void) {
    struct mode_setup setup = {.context = context_of(2, false),
                               .single = context_of(1, false),
                               .twin_count = 2,
                               .twins = {context_of(3, false), context_of(0, true)},
                               .twin_names = {"3", "lent"}};
    if (!setup.context || !setup.single || !setup.twins[0] || !setup.twins[1]) {
        printf("no context: %s\n", liger_last_error());
        return 1;
    }
    check_formats();
    check_tools();
    check_kept_runs();
    for (int m = 0; m < test_mode_count; m++)
        expect(failures(&setup, test_modes[m].name, HEALTHY) == 0, "the healthy operator passes", test_modes[m].name);
    expect(failures(&setup, "history", HEALTHY) == 0, "the healthy operator passes", "history");
    for (int k = 0; k < OP_COUNT(expected); k++)
        expect(failures(&setup, expected[k].mode, expected[k].sickness) > 0, expected[k].what, expected[k].mode);
    expect(failures(&setup, "parity", WORSE_THAN_NAIVE) == 0, "the budget allows what mode naive catches", "parity");
    expect(failures(&setup, "determinism", KEEPS_A_LIMIT) == 0, "in the order of the cases nothing shows",
           "determinism");
    check_reasons(&setup);
    check_streams();
    liger_context_destroy(setup.context);
    liger_context_destroy(setup.single);
    for (int k = 0; k < setup.twin_count; k++) liger_context_destroy(setup.twins[k]);
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
