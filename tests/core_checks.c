/* core_checks.c - see core_checks.h. On the CPU only: none of it depends on where kernels run. */
#define _GNU_SOURCE
#include "tests/core_checks.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "liger/core/check.h"
#include "liger/core/overlap.h"
#include "liger/core/rows.h"
#include "liger/cpu/parallel.h"
#include "liger/ops/gemm/gemm_plans.h"
#include "liger/ops/rope/rope.h"
#include "tests/door_checks.h"
#include "tests/harness/random.h"
#include "tests/thread_checks.h"

static void expect(struct report *report, bool fact, const char *what) {
    if (fact) report_pass(report);
    else report_fail(report, "%s", what);
}

/* ---- overlap: views whose answer is known ------------------------------------------------------------------------- */

static char memory[1 << 16];

struct view {
    int64_t first; /* element of `memory` */
    liger_dtype dtype;
    int ndim;
    int64_t shape[LIGER_MAX_DIMS], stride[LIGER_MAX_DIMS];
};

static liger_tensor tensor_of(const struct view *view) {
    liger_tensor tensor = {.data = memory + view->first * (int64_t)liger_dtype_size(view->dtype),
                           .dtype = (int32_t)view->dtype,
                           .ndim = view->ndim};
    memcpy(tensor.shape, view->shape, sizeof tensor.shape);
    memcpy(tensor.stride, view->stride, sizeof tensor.stride);
    return tensor;
}

/* clang-format off */
static const struct {
    const char *what;
    struct view a, b;
    bool collide;
} known[] = {
    {"the halves of one projection",
     {0, LIGER_F16, 2, {9, 20}, {40, 1}}, {20, LIGER_F16, 2, {9, 20}, {40, 1}}, false},
    {"halves that share a column",
     {0, LIGER_F16, 2, {9, 21}, {40, 1}}, {20, LIGER_F16, 2, {9, 20}, {40, 1}}, true},
    {"four heads of q and two of k in one projection", /* [batch, heads, seq, dim] of [batch, seq, 4 + 2 + 2, dim] */
     {0, LIGER_BF16, 4, {2, 4, 5, 16}, {640, 16, 128, 1}}, {64, LIGER_BF16, 4, {2, 2, 5, 16}, {640, 16, 128, 1}}, false},
    {"five heads of q and two of k",
     {0, LIGER_BF16, 4, {2, 5, 5, 16}, {640, 16, 128, 1}}, {64, LIGER_BF16, 4, {2, 2, 5, 16}, {640, 16, 128, 1}}, true},
    {"all but the last token, and the last",
     {0, LIGER_F32, 3, {3, 6, 8}, {56, 8, 1}}, {48, LIGER_F32, 3, {3, 1, 8}, {56, 8, 1}}, false},
    {"all but the last token, and the last two",
     {0, LIGER_F32, 3, {3, 6, 8}, {56, 8, 1}}, {40, LIGER_F32, 3, {3, 2, 8}, {56, 8, 1}}, true},
    {"an outer stride that is no multiple of the inner one: gaps within a pitch do not keep rows apart",
     {0, LIGER_F32, 3, {2, 2, 3}, {12, 8, 1}}, {4, LIGER_F32, 3, {2, 2, 3}, {12, 8, 1}}, true},
    {"even and odd elements",
     {0, LIGER_F32, 1, {50}, {2}}, {1, LIGER_F32, 1, {50}, {2}}, false},
    {"even elements, forwards and backwards",
     {0, LIGER_F32, 1, {50}, {2}}, {98, LIGER_F32, 1, {50}, {-2}}, true},
    {"even elements and odd ones backwards",
     {0, LIGER_F32, 1, {50}, {2}}, {99, LIGER_F32, 1, {50}, {-2}}, false},
    {"columns 0 and 1 of a matrix, of other lengths",
     {0, LIGER_F32, 1, {30}, {7}}, {8, LIGER_F32, 1, {12}, {7}}, false},
    {"a matrix and its transpose",
     {0, LIGER_F32, 2, {6, 9}, {9, 1}}, {0, LIGER_F32, 2, {9, 6}, {1, 9}}, true},
    {"one element seen many times",
     {5, LIGER_F32, 2, {6, 9}, {0, 0}}, {0, LIGER_F32, 1, {9}, {1}}, true},
    {"i64 between pairs of f32",
     {0, LIGER_F32, 2, {8, 2}, {4, 1}}, {1, LIGER_I64, 1, {8}, {2}}, false},
    {"i64 half over pairs of f32",
     {1, LIGER_F32, 2, {8, 2}, {4, 1}}, {1, LIGER_I64, 1, {8}, {2}}, true},
    {"pitches of 70 and 42 that meet nowhere: both are even, the bases differ by an odd number",
     {0, LIGER_U8, 1, {60}, {70}}, {1, LIGER_U8, 1, {90}, {42}}, false},
};
/* clang-format on */

static void known_views(struct report *report) {
    for (size_t k = 0; k < sizeof known / sizeof known[0]; k++) {
        const liger_tensor a = tensor_of(&known[k].a), b = tensor_of(&known[k].b);
        expect(report, liger_views_collide(&a, &b) == known[k].collide, known[k].what);
        expect(report, liger_views_collide(&b, &a) == known[k].collide, known[k].what);
        expect(report, (liger_check_overlap(&a, "test: a", &b, "b", false) == LIGER_OK) != known[k].collide,
               known[k].what);
    }
}

/* ---- overlap: views drawn at random, against every byte they touch ------------------------------------------------ */

enum { VIEW_ROUNDS = 20000, MIDDLE = 1 << 11 };

static struct view draw_view(struct random_stream *stream) {
    static const liger_dtype dtypes[] = {LIGER_U8, LIGER_BF16, LIGER_F32, LIGER_I64};
    struct view view = {.dtype = dtypes[random_below(stream, 4)],
                        .ndim = (int)random_below(stream, LIGER_MAX_DIMS + 1)};
    view.first = MIDDLE + random_below(stream, 40);
    int64_t nested = 1;
    for (int d = view.ndim - 1; d >= 0; d--) { /* half of the strides nest, the others are anything small */
        view.shape[d] = 1 + random_below(stream, view.ndim > 3 ? 3 : 6);
        view.stride[d] = random_below(stream, 2) ? nested : random_below(stream, 41) - 20;
        nested = view.shape[d] * (view.stride[d] > 0 ? view.stride[d] : 1) + random_below(stream, 5);
    }
    return view;
}

/* Gives each byte of each element the mark `now`; returns how many of them had the mark `before`. */
static int64_t mark(const liger_tensor *tensor, unsigned char *marks, unsigned char before, unsigned char now) {
    int64_t index[LIGER_MAX_DIMS] = {0}, had = 0;
    const int64_t elements = liger_tensor_elements(tensor), size = (int64_t)liger_dtype_size(tensor->dtype);
    for (int64_t e = 0; e < elements; e++) {
        int64_t at = (char *)tensor->data - memory;
        for (int d = 0; d < tensor->ndim; d++) at += index[d] * tensor->stride[d] * size;
        for (int64_t p = 0; p < size; p++) {
            had += marks[at + p] == before;
            marks[at + p] = now;
        }
        for (int d = tensor->ndim - 1; d >= 0 && ++index[d] == tensor->shape[d]; d--) index[d] = 0;
    }
    return had;
}

static bool within_memory(const liger_tensor *tensor) {
    const struct byte_span span = liger_byte_span(tensor);
    return span.begin >= (uintptr_t)memory && span.end <= (uintptr_t)memory + sizeof memory;
}

/* What is true of two views, byte by byte. */
static void look_at_bytes(const liger_tensor *a, const liger_tensor *b, bool *repeats, bool *share) {
    static unsigned char marks[sizeof memory]; /* all 0 between two looks */
    const int64_t bytes = liger_tensor_elements(a) * (int64_t)liger_dtype_size(a->dtype);
    *repeats = mark(a, marks, 0, 1) < bytes;
    *share = mark(b, marks, 1, 2) > 0;
    mark(a, marks, 0, 0);
    mark(b, marks, 0, 0);
}

static void drawn_views(struct report *report) {
    int interleaved = 0, wrong = 0, repeating = 0, rounds = 0;
    for (int round = 0; round < VIEW_ROUNDS; round++) {
        struct random_stream stream = random_start(random_seed("overlap"), (uint64_t)round);
        const struct view one = draw_view(&stream), other = draw_view(&stream);
        const liger_tensor a = tensor_of(&one), b = tensor_of(&other);
        if (!within_memory(&a) || !within_memory(&b)) continue;
        bool truth, repeats;
        look_at_bytes(&a, &b, &repeats, &truth);
        rounds++;
        repeating += repeats;
        if (liger_view_repeats(&a) != repeats && ++wrong)
            report_fail(report, "the drawn view %d %s", round, repeats ? "repeats itself" : "does not repeat itself");
        interleaved += !truth && liger_spans_meet(liger_byte_span(&a), liger_byte_span(&b));
        if (liger_views_collide(&a, &b) == truth) continue;
        wrong++;
        report_fail(report, "the drawn views %d %s a byte", round, truth ? "share" : "do not share");
    }
    expect(report, wrong == 0, "drawn views");
    expect(report, interleaved > VIEW_ROUNDS / 50, "enough of the drawn views interleave");
    expect(report, repeating > rounds / 5 && repeating < rounds * 4 / 5, "some of the drawn views repeat themselves");
}

/* ---- overlap: at a door ------------------------------------------------------------------------------------------- */

enum { BATCH = 2, SEQ = 3, Q_HEADS = 4, K_HEADS = 2, DIM = 8, TOKEN = (Q_HEADS + 2 * K_HEADS) * DIM };

/* RoPE in place on heads of one [batch, seq, q k v] projection; k's heads begin at `k_first`. */
static liger_status rotate(liger_context *context, float *projection, int64_t k_first) {
    static float table[SEQ * DIM]; /* cos and sin of no angle in particular */
    for (int i = 0; i < SEQ * DIM; i++) table[i] = 0.5f + (float)(i % 7);
    liger_rope_forward_args args = LIGER_ROPE_FORWARD_ARGS_INIT;
    const liger_tensor heads = {.dtype = LIGER_F32, .ndim = 4, .stride = {SEQ * TOKEN, DIM, TOKEN, 1}};
    args.q = args.k = heads;
    args.q.data = projection, args.k.data = projection + k_first * DIM;
    memcpy(args.q.shape, (int64_t[]){BATCH, Q_HEADS, SEQ, DIM}, 4 * sizeof(int64_t));
    memcpy(args.k.shape, (int64_t[]){BATCH, K_HEADS, SEQ, DIM}, 4 * sizeof(int64_t));
    args.q_out = args.q, args.k_out = args.k;
    args.cos = args.sin = liger_tensor_contiguous(table, LIGER_F32, 2, (int64_t[]){SEQ, DIM});
    args.rotary = DIM;
    return liger_rope_forward(context, &args, NULL);
}

static void rope_in_one_projection(struct report *report) {
    static float projection[BATCH * SEQ * TOKEN], before[BATCH * SEQ * TOKEN];
    for (int i = 0; i < BATCH * SEQ * TOKEN; i++) before[i] = projection[i] = (float)(i % 11) - 5;
    liger_context *context = NULL;
    expect(report, liger_context_create(NULL, &context) == LIGER_OK, "a context with default options");
    expect(report, rotate(context, projection, Q_HEADS - 1) == LIGER_ERR_LAYOUT, "k over the last head of q");
    expect(report, memcmp(projection, before, sizeof before) == 0, "a refused call writes nothing");
    expect(report, rotate(context, projection, Q_HEADS) == LIGER_OK, "q and k of one projection, in place");
    int turned = 0, v_kept = 0;
    for (int i = 0; i < BATCH * SEQ * TOKEN; i++) {
        if (i % TOKEN < (Q_HEADS + K_HEADS) * DIM) turned += projection[i] != before[i];
        else v_kept += projection[i] == before[i];
    }
    expect(report, turned > BATCH * SEQ * (Q_HEADS + K_HEADS) * DIM / 2, "q and k are rotated");
    expect(report, v_kept == BATCH * SEQ * K_HEADS * DIM, "v stays");
    liger_context_destroy(context);
}

/* ---- rows: where they begin --------------------------------------------------------------------------------------- */

/* Shapes and strides of views whose memory nobody looks at: the leading dimensions, then one column. */
static const struct {
    const char *what;
    int leading;
    int64_t shape[3], stride[3];
} folded[] = {
    {"few rows", 1, {100}, {7}},
    {"a stride of 0", 1, {100}, {0}},
    {"backwards", 1, {100}, {-3}},
    {"a stride beyond 2^31", 1, {9}, {((int64_t)1 << 31) + 1}},
    {"two strides", 2, {5, 7}, {100, 3}},
    {"two strides, many rows", 2, {65521, 65521}, {196608, 2}},
    {"one stride in three dimensions", 3, {3, 4, 5}, {40, 10, 2}},
    {"2^32 - 1 rows", 1, {((int64_t)1 << 32) - 1}, {3}},
    {"2^32 rows", 1, {(int64_t)1 << 32}, {1}},
    {"2^32 + 8 rows", 1, {((int64_t)1 << 32) + 8}, {1}},
    {"2^32 + 8 rows of a stride", 1, {((int64_t)1 << 32) + 8}, {5}},
    {"2^32 + 8 rows of a stride of 0", 1, {((int64_t)1 << 32) + 8}, {0}},
    {"2^32 + 8 rows, backwards", 1, {((int64_t)1 << 32) + 8}, {-2}},
    {"2^40 rows in two dimensions", 2, {(int64_t)1 << 20, (int64_t)1 << 20}, {(int64_t)1 << 21, 2}},
};

/* The offset of row r, dimension by dimension. */
static int64_t offset_by_division(const liger_tensor *tensor, int64_t r) {
    int64_t offset = 0;
    for (int d = tensor->ndim - 2; d >= 0; d--) {
        offset += r % tensor->shape[d] * tensor->stride[d];
        r /= tensor->shape[d];
    }
    return offset;
}

static void rows_of_views(struct report *report) {
    for (size_t i = 0; i < sizeof folded / sizeof folded[0]; i++) {
        const int leading = folded[i].leading;
        liger_tensor tensor = {.data = memory, .dtype = LIGER_U8, .ndim = leading + 1};
        memcpy(tensor.shape, folded[i].shape, sizeof folded[i].shape);
        memcpy(tensor.stride, folded[i].stride, sizeof folded[i].stride);
        tensor.shape[leading] = tensor.stride[leading] = 1;
        liger_rows rows;
        expect(report, liger_fold_rows(&tensor, "x", &rows) == LIGER_OK, folded[i].what);
        const int64_t count = liger_tensor_rows(&tensor), step = count > 4096 ? count / 1009 : 1;
        int64_t wrong = -1;
        for (int64_t r = 0; r < count && wrong < 0; r += step)
            for (int64_t near = r; near < r + 3 && near < count; near++)
                if (liger_row_offset(rows, near) != offset_by_division(&tensor, near)) wrong = near;
        for (int64_t r = count - 1; r >= 0 && r > count - 32 && wrong < 0; r--)
            if (liger_row_offset(rows, r) != offset_by_division(&tensor, r)) wrong = r;
        if (wrong < 0) report_pass(report);
        else
            report_fail(report, "%s: row %lld begins at %lld, but the fold says %lld", folded[i].what, (long long)wrong,
                        (long long)offset_by_division(&tensor, wrong), (long long)liger_row_offset(rows, wrong));
    }
}

/* ---- contexts ----------------------------------------------------------------------------------------------------- */

static void no_context(struct report *report) {
    expect(report, liger_context_device(NULL) == -2, "the device of no context");
    expect(report, liger_context_isa(NULL) == LIGER_ISA_AUTO, "the instruction set of no context");
    expect(report, strcmp(liger_context_backend(NULL), "none") == 0, "the backend of no context");
    expect(report, liger_context_gemm_provider(NULL)[0] != 0, "the matrix products of no context");
    liger_context_options options = LIGER_CONTEXT_OPTIONS_INIT;
    options.device = liger_context_device(NULL);
    liger_context *context = NULL;
    expect(report, liger_context_create(&options, &context) == LIGER_ERR_DEVICE, "the device of no context is none");
    liger_context_destroy(NULL);
}

/* The instruction set that a context takes where LIGER_CPU_ISA is `name`; -1: there is no such context. */
static int isa_where(const char *name) {
    liger_context_options options = LIGER_CONTEXT_OPTIONS_INIT;
    liger_context *context = NULL;
    if (name != NULL) setenv("LIGER_CPU_ISA", name, true);
    else unsetenv("LIGER_CPU_ISA");
    const int isa = liger_context_create(&options, &context) == LIGER_OK ? liger_context_isa(context) : -1;
    liger_context_destroy(context);
    return isa;
}

static void isa_of_environment(struct report *report) {
    const char *found = getenv("LIGER_CPU_ISA");
    char *kept = found != NULL ? strdup(found) : NULL;
    const int best = isa_where(NULL);
    expect(report, best > LIGER_ISA_AUTO, "without LIGER_CPU_ISA a context has a set");
    expect(report, isa_where("") == best && isa_where("auto") == best && isa_where("AUTO") == best,
           "LIGER_CPU_ISA=auto is what a context does without it");
    for (int isa = LIGER_ISA_BASE; isa <= LIGER_ISA_NEON; isa++)
        expect(report, isa_where(liger_isa_name(isa)) == (liger_has_isa(isa) ? isa : -1), liger_isa_name(isa));
    expect(report, isa_where("automatic") == -1, "a name that is none is refused");
    if (kept != NULL) setenv("LIGER_CPU_ISA", kept, true);
    else unsetenv("LIGER_CPU_ISA");
    free(kept);
}

/* ---- signals ------------------------------------------------------------------------------------------------------ */

enum { THREADS = 3 };

/* What each of THREADS threads saw of its own mask. */
struct masks {
    atomic_int arrived, workers, takes_signals, hides_faults;
    pthread_t caller;
};

/* Holds its thread until every thread has a chunk, so that each looks at its own mask; not for ever, in case a thread could
 * not be started. */
static void look_at_mask(void *argument, int64_t begin, int64_t end) {
    struct masks *masks = argument;
    sigset_t mask;
    (void)begin, (void)end;
    atomic_fetch_add(&masks->arrived, 1);
    for (int wait = 0; wait < 5000 && atomic_load(&masks->arrived) < THREADS; wait++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    if (pthread_equal(pthread_self(), masks->caller) || pthread_sigmask(SIG_BLOCK, NULL, &mask) != 0) return;
    static const int signals[] = {SIGINT, SIGTERM, SIGALRM, SIGUSR1, SIGCHLD, SIGPROF};
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        if (!sigismember(&mask, signals[i])) atomic_fetch_add(&masks->takes_signals, 1);
    if (sigismember(&mask, SIGSEGV) || sigismember(&mask, SIGFPE)) atomic_fetch_add(&masks->hides_faults, 1);
    atomic_fetch_add(&masks->workers, 1);
}

static void workers_leave_signals_alone(struct report *report) {
    liger_context_options options = LIGER_CONTEXT_OPTIONS_INIT;
    liger_context *context = NULL;
    struct masks masks = {.caller = pthread_self()};
    sigset_t before, after;
    options.threads = THREADS;
    expect(report, liger_context_create(&options, &context) == LIGER_OK, "a context of three threads");
    pthread_sigmask(SIG_BLOCK, NULL, &before);
    liger_parallel_for(context, THREADS, 1, look_at_mask, &masks);
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    expect(report, atomic_load(&masks.workers) == THREADS - 1, "two workers looked at their masks");
    expect(report, atomic_load(&masks.takes_signals) == 0, "a worker takes no signals");
    expect(report, atomic_load(&masks.hides_faults) == 0, "a worker's faults stay visible");
    bool same = true;
    for (int s = 1; s < SIGRTMAX; s++) same = same && sigismember(&before, s) == sigismember(&after, s);
    expect(report, same, "the caller's mask is as before");
    liger_context_destroy(context);
}

/* ---- plans of products -------------------------------------------------------------------------------------------- */

/* The products of a linear loss, of which the i-th row count brings seven. */
static struct plan_key product_key(int i) {
    const int64_t rows = 1 + i / 7, hidden = 4096, vocab = 128256;
    struct plan_key key = {.m = rows, .n = vocab, .k = hidden, .lda = hidden, .ldb = hidden, .ldc = vocab};
    if (i % 7 > 1)
        key = (struct plan_key){.m = rows, .n = hidden, .k = vocab, .lda = vocab, .ldb = hidden, .ldc = hidden};
    if (i % 7 > 3)
        key = (struct plan_key){.m = vocab, .n = hidden, .k = rows, .lda = vocab, .ldb = hidden, .ldc = hidden};
    key.accumulate = i % 7 == 6;
    key.alignment_a = 16 >> i % 2, key.alignment_b = key.alignment_c = 16;
    return key;
}

static int longest_chain(const struct plan_table *table) {
    int most = 0;
    for (int i = 0; i < PLANS; i++) {
        int length = 0;
        for (int32_t at = table->first[i]; at > 0; at = table->following[at - 1]) length++;
        most = length > most ? length : most;
    }
    return most;
}

static void plans_of_a_long_run(struct report *report) {
    enum { LATE = PLANS / 3, SEEN = PLANS + LATE };
    struct plan_table *table = calloc(1, sizeof *table);
    static int place[SEEN];
    int strangers = 0, lost = 0, moved = 0, kept = 0;
    if (table == NULL) return expect(report, false, "memory for a table of plans");
    for (int i = 0; i < SEEN; i++) {
        const struct plan_key key = product_key(i);
        strangers += plan_find(table, &key) != NO_PLAN;
        place[i] = plan_place(table, &key);
        lost += plan_find(table, &key) != place[i];
    }
    for (int i = 0; i < SEEN; i++) {
        const struct plan_key key = product_key(i);
        const int found = plan_find(table, &key);
        if (i < LATE) kept += found != NO_PLAN;
        else moved += found != place[i];
    }
    expect(report, strangers == 0, "a product that was not seen has no plan");
    expect(report, lost == 0, "a product has the place that it was given");
    expect(report, kept == 0, "the oldest give way");
    expect(report, moved == 0, "the others keep their places");
    expect(report, longest_chain(table) <= 12, "products are spread over the table"); /* of a fair hash 7 or 8 */
    free(table);
}

void core_checks(struct report *report) {
    report_begin(report);
    known_views(report);
    drawn_views(report);
    rope_in_one_projection(report);
    report_end(report, "core", "overlap", "host");
    report_begin(report);
    rows_of_views(report);
    report_end(report, "core", "rows", "host");
    report_begin(report);
    no_context(report);
    isa_of_environment(report);
    workers_leave_signals_alone(report);
    report_end(report, "core", "context", "host");
    report_begin(report);
    plans_of_a_long_run(report);
    report_end(report, "core", "plans", "host");
    door_checks(report);
    thread_checks(report);
}
