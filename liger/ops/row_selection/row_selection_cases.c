/* row_selection_cases.c - shapes, properties and bench points of the selection of rows. Internal slots: no doors; whom they
 * refuse they refuse for the function that calls them. */
#include <stdio.h>
#include <string.h>

#include "liger/core/context_state.h"
#include "liger/ops/row_selection/row_selection_problem.h"
#include "liger/ops/row_selection/row_selection_ref.h"
#include "tests/harness/op_cases.h"
#include "tests/harness/op_run.h"

#define NO_VALUES "row_selection: numbers of rows are all there is"

/* ---- select ----------------------------------------------------------------------------------------------------- */

enum { TARGET, ROW_OF, PLACE_OF, COUNTED, SELECT_TENSORS };
enum { TARGETS, MOST, IGNORE_EVERY };
enum { LONG_RUNS = 1 };
enum { VOCAB = 11, IGNORED = -100 };

/* A GPU takes 32 targets at a time, 256 to a warp, 8192 to a tile. */
static const struct op_case select_cases[] = {
    {.label = "10 of 14", .size = {14, 12, 3}},
    {.label = "1", .size = {1, 1, 0}},
    {.label = "33, all", .size = {33, 33, 0}},
    {.label = "255, none", .size = {255, 9, 1}},
    {.label = "257 in long runs", .size = {257, 257, 5}, .flags = LONG_RUNS},
    {.label = "1024, as many places", .size = {1024, 768, 4}},
    {.label = "8192, more places than rows", .size = {8192, 9000, 7}},
    {.label = "8193", .size = {8193, 8193, 2}},
    {.label = "20001 in long runs", .size = {20001, 20000, 3}, .flags = LONG_RUNS},
    {.label = "100003", .size = {100003, 100003, 13}, .large = true},
    {.label = "no rows", .size = {0, 5, 0}, .edge = true},
    {.label = "no rows, no places", .size = {0, 0, 0}, .edge = true},
    {.label = "none of 40, no places", .size = {40, 0, 1}, .edge = true},
};
static const struct op_case select_bench[] = {
    {.label = "16384", .size = {16384, 16384, 2}},
    {.label = "1048576", .size = {1 << 20, 1 << 20, 2}, .large = true},
};

static struct tensor_spec numbers(const char *name, enum tensor_role role, int64_t count) {
    return (struct tensor_spec){.name = name, .role = role, .kind = KIND_I64, .ndim = 1, .shape = {count}};
}

static void describe_select(const struct op_case *c, struct tensor_spec *spec) {
    spec[TARGET] = (struct tensor_spec){.name = "target",
                                        .role = ROLE_IN,
                                        .kind = KIND_INDEX,
                                        .values = VALUES_TARGET,
                                        .spread = VOCAB,
                                        .offset = IGNORED,
                                        .ignore_every = (int)c->size[IGNORE_EVERY],
                                        .ndim = 1,
                                        .shape = {c->size[TARGETS]}};
    spec[ROW_OF] = numbers("row_of", ROLE_OUT, c->size[MOST]);
    spec[PLACE_OF] = numbers("place_of", ROLE_OUT, c->size[TARGETS]);
    spec[COUNTED] = numbers("count", ROLE_OUT, 1);
}

/* Warps, and tiles, of which nobody counts, or everybody. */
static void prepare_select(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    const int64_t run = c->size[TARGETS] / 5 + 1;
    for (int64_t r = 0; c->flags & LONG_RUNS && r < c->size[TARGETS]; r++)
        if (r / run % 2) t[TARGET][r] = r / run == 1 ? IGNORED : (double)(r % VOCAB);
}

static liger_status call_select(liger_context *context, const struct op_call *call, liger_stream stream) {
    const struct row_select_problem problem = {
        .target = call->t[TARGET].data,
        .target_dtype = (liger_dtype)call->t[TARGET].dtype,
        .rows = call->t[TARGET].shape[0],
        .ignore_index = IGNORED,
        .vocab = VOCAB,
        .most = call->c.size[MOST],
        .row_of = call->t[ROW_OF].data,
        .place_of = call->t[PLACE_OF].data,
        .count = call->t[COUNTED].data,
        .op = "the_caller",
    };
    return context->kernels->row_select(context, &problem, stream);
}

static void reference_select(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    row_select_reference(&(struct row_select_ref){
        .rows = c->size[TARGETS],
        .most = c->size[MOST],
        .ignore_index = IGNORED,
        .target = t[TARGET],
        .row_of = t[ROW_OF],
        .place_of = t[PLACE_OF],
        .count = t[COUNTED],
    });
}

/* NULL if it was refused with this status and sentence. */
static const char *refused(struct op_run *run, liger_status status, liger_status expected, const char *sentence) {
    if (status != expected) return op_run_text(run, "the status was %s", liger_status_name(status));
    return strstr(liger_last_error(), sentence) ? NULL : op_run_text(run, "the message was: %s", liger_last_error());
}

static bool on_a_cpu(const struct op_run *run) { return liger_context_device(run->context) == LIGER_DEVICE_CPU; }

/* NULL if the outputs are those of the reference, but for what lies behind the places in use. */
static const char *as_expected(struct op_run *run) {
    for (int i = ROW_OF; i <= COUNTED; i++) {
        const int64_t count = i == ROW_OF ? run->c.size[MOST] : run->count[i];
        for (int64_t k = 0; k < count; k++)
            if (run->t[i][k] != run->expected[i][k])
                return op_run_text(run, "%s[%lld] is %g, not %g", run->spec[i].name, (long long)k, run->t[i][k],
                                   run->expected[i][k]);
    }
    return NULL;
}

/* The CPU says which; elsewhere it counts as any other. */
static const char *target_out_of_range(struct op_run *run) {
    const int64_t last = run->c.size[TARGETS] - 1;
    const double beyond[] = {VOCAB, -1};
    for (int i = 0; i < 2; i++) {
        char text[120];
        run->t[TARGET][last] = beyond[i];
        if (!op_run_expect(run)) return "no memory";
        if (run->expected[COUNTED][0] > (double)run->c.size[MOST])
            return op_run_not_applicable(run, "target out of range: the case has no place left");
        snprintf(text, sizeof text, "the_caller: target[%lld] is %lld, which is out of bounds: it must be in [0, %d)",
                 (long long)last, (long long)beyond[i], VOCAB);
        const liger_status status = op_run_call(run);
        const char *wrong = on_a_cpu(run) ? refused(run, status, LIGER_ERR_TARGET, text) : as_expected(run);
        if (wrong) return wrong;
    }
    return NULL;
}

/* The CPU says both numbers; elsewhere the count is right, and the first places are in use. */
static const char *bound_too_small(struct op_run *run) {
    char text[120];
    if (!op_run_expect(run)) return "no memory";
    const int64_t count = (int64_t)run->expected[COUNTED][0];
    if (count < 2) return op_run_not_applicable(run, "bound too small: nobody counts");
    run->c.size[MOST] = count - 1;
    if (!op_run_expect(run)) return "no memory";
    snprintf(text, sizeof text, "the_caller: valid_rows is %lld, but %lld of", (long long)count - 1, (long long)count);
    const liger_status status = op_run_call(run);
    return on_a_cpu(run) ? refused(run, status, LIGER_ERR_ARGUMENT, text) : as_expected(run);
}

static const struct op_property select_properties[] = {
    {"a target out of range", target_out_of_range},
    {"a bound that is too small", bound_too_small},
};

const struct op_cases row_select_cases = {
    .name = "row_select",
    .tensor_count = SELECT_TENSORS,
    .describe = describe_select,
    OP_CASES(select_cases),
    .prepare = prepare_select,
    .call = call_select,
    .reference = reference_select,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    .no_range = {NO_VALUES, NO_VALUES, NO_VALUES, NO_VALUES},
    .no_aliases = OP_NO_ALIASES,
    OP_PROPERTIES(select_properties),
    OP_BENCH(select_bench),
};

/* ---- gather and scatter ----------------------------------------------------------------------------------------- */

enum { X, PLACES, Y, MOVE_TENSORS };
enum { ROWS, COLS, X_ROWS };
enum { FROM_F32 = 1, AS_THEY_LIE = 2, NONE_THERE = 4 };

static struct tensor_spec matrix(const char *name, enum tensor_role role, int64_t rows, int64_t cols, bool gaps) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_T,
                                .values = VALUES_NORMAL,
                                .ndim = 2,
                                .shape = {rows, cols},
                                .gaps = gaps,
                                .specials = true,
                                .ranges = role == ROLE_IN ? OP_EVERY_RANGE : 0};
}
/* Every fourth row is not there, or all. */
static struct tensor_spec places(const struct op_case *c, const char *name) {
    struct tensor_spec spec = numbers(name, ROLE_IN, c->size[ROWS]);
    spec.values = VALUES_TARGET;
    spec.spread = (double)(c->size[X_ROWS] > 0 ? c->size[X_ROWS] : 1);
    spec.offset = -1;
    spec.ignore_every = c->flags & NONE_THERE ? 1 : 4;
    return spec;
}

static void reference_move(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    row_move_reference(&(struct row_move_ref){
        .rows = c->size[ROWS], .cols = c->size[COLS], .x = t[X], .place_of = t[PLACES], .y = t[Y]});
}

/* Rows that are there are read, and all are written. */
static double moved_bytes(const struct op_case *c, const struct op_types *types) {
    const double elements = (double)(c->size[ROWS] * c->size[COLS]), size = (double)liger_dtype_size((int)types->t);
    return elements * (size + (c->flags & FROM_F32 ? 4 : size) * (c->flags & AS_THEY_LIE ? 1 : 0.75));
}

/* ---- gather ---- */

static const struct op_case gather_cases[] = {
    {.label = "7x33 of 5", .size = {7, 33, 5}},
    {.label = "1x1 of 1", .size = {1, 1, 1}},
    {.label = "1x64 of 9", .size = {1, 64, 9}},
    {.label = "20x15 of 40", .size = {20, 15, 40}},
    {.label = "33x16 of 3", .size = {33, 16, 3}},
    {.label = "64x24 of 100", .size = {64, 24, 100}},
    {.label = "300x1 of 70", .size = {300, 1, 70}},
    {.label = "5x4099 of 6", .size = {5, 4099, 6}},
    {.label = "300x4096 of 500", .size = {300, 4096, 500}, .large = true},
    {.label = "70001x8 of 90000", .size = {70001, 8, 90000}, .large = true}, /* more than a grid's second dimension */
    {.label = "9x17, none there", .size = {9, 17, 1}, .flags = NONE_THERE, .edge = true},
    {.label = "no rows", .size = {0, 33, 5}, .edge = true},
    {.label = "no columns", .size = {7, 0, 5}, .edge = true},
};
static const struct op_case gather_bench[] = {
    {.label = "8192x4096 of 16384", .size = {8192, 4096, 16384}, .dtypes = 1u << LIGER_BF16, .large = true},
};

static void describe_gather(const struct op_case *c, struct tensor_spec *spec) {
    spec[X] = matrix("x", ROLE_IN, c->size[X_ROWS], c->size[COLS], true);
    spec[PLACES] = places(c, "row_of");
    spec[Y] = matrix("y", ROLE_OUT, c->size[ROWS], c->size[COLS], false); /* budget 0: nothing is rounded */
}

static liger_status call_gather(liger_context *context, const struct op_call *call, liger_stream stream) {
    const struct row_gather_problem problem = {
        .dtype = (liger_dtype)call->t[X].dtype,
        .rows = call->t[Y].shape[0],
        .cols = call->t[Y].shape[1],
        .x = call->t[X].data,
        .x_stride = call->t[X].stride[0],
        .row_of = call->t[PLACES].data,
        .y = call->t[Y].data,
    };
    return context->kernels->row_gather(context, &problem, stream);
}

const struct op_cases row_gather_cases = {
    .name = "row_gather",
    .tensor_count = MOVE_TENSORS,
    .describe = describe_gather,
    OP_CASES(gather_cases),
    .call = call_gather,
    .reference = reference_move,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    OP_BENCH(gather_bench),
    .bytes = moved_bytes,
};

/* ---- scatter ---- */

static const struct op_case scatter_cases[] = {
    {.label = "7x33 of 5 from f32", .size = {7, 33, 5}, .flags = FROM_F32},
    {.label = "1x1 of 1", .size = {1, 1, 1}},
    {.label = "20x15 of 40", .size = {20, 15, 40}},
    {.label = "33x16 of 3 from f32", .size = {33, 16, 3}, .flags = FROM_F32},
    {.label = "40x17 as they lie, from f32", .size = {40, 17, 40}, .flags = FROM_F32 | AS_THEY_LIE},
    {.label = "64x24 of 100", .size = {64, 24, 100}},
    {.label = "1x72 of 3 from f32", .size = {1, 72, 3}, .flags = FROM_F32},
    {.label = "5x4099 as they lie", .size = {5, 4099, 5}, .flags = AS_THEY_LIE},
    {.label = "9x40, no x", .size = {9, 40, 0}, .flags = NONE_THERE},
    {.label = "9x33, no x, from f32", .size = {9, 33, 0}, .flags = NONE_THERE | FROM_F32},
    {.label = "300x4096 of 500 from f32", .size = {300, 4096, 500}, .flags = FROM_F32, .large = true},
    {.label = "70001x8 of 90000", .size = {70001, 8, 90000}, .large = true},
    {.label = "no rows", .size = {0, 33, 5}, .edge = true},
    {.label = "no columns", .size = {7, 0, 5}, .flags = FROM_F32, .edge = true},
};
static const struct op_case scatter_bench[] = {
    {.label = "16384x4096 of 8192 from f32",
     .size = {16384, 4096, 8192},
     .flags = FROM_F32,
     .dtypes = 1u << LIGER_BF16,
     .large = true},
    {.label = "16384x4096 as they lie, from f32",
     .size = {16384, 4096, 16384},
     .flags = FROM_F32 | AS_THEY_LIE,
     .dtypes = 1u << LIGER_BF16,
     .large = true},
};

static void describe_scatter(const struct op_case *c, struct tensor_spec *spec) {
    spec[X] = matrix("x", ROLE_IN, c->size[X_ROWS], c->size[COLS], true);
    spec[X].kind = c->flags & FROM_F32 ? KIND_F32 : KIND_T;
    spec[X].absent = c->flags & NONE_THERE;
    spec[PLACES] = places(c, "place_of");
    spec[PLACES].absent = c->flags & AS_THEY_LIE;
    spec[Y] = matrix("y", ROLE_OUT, c->size[ROWS], c->size[COLS], true);
    if (!(c->flags & FROM_F32)) return;
    /* f16 below 2^-14 has fixed steps of 2^-24. */
    spec[Y].relative = 1.01, spec[Y].absolute = 1, spec[Y].magnitude = 1;
}

static liger_status call_scatter(liger_context *context, const struct op_call *call, liger_stream stream) {
    const struct row_scatter_problem problem = {
        .x_dtype = call->c.flags & FROM_F32 ? LIGER_F32 : (liger_dtype)call->t[Y].dtype,
        .y_dtype = (liger_dtype)call->t[Y].dtype,
        .rows = call->t[Y].shape[0],
        .cols = call->t[Y].shape[1],
        .x = call->t[X].data,
        .x_stride = call->t[X].stride[0],
        .place_of = call->t[PLACES].data,
        .y = call->t[Y].data,
        .y_stride = call->t[Y].stride[0],
    };
    return context->kernels->row_scatter(context, &problem, stream);
}

const struct op_cases row_scatter_cases = {
    .name = "row_scatter",
    .tensor_count = MOVE_TENSORS,
    .describe = describe_scatter,
    OP_CASES(scatter_cases),
    .call = call_scatter,
    .reference = reference_move,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    OP_BENCH(scatter_bench),
    .bytes = moved_bytes,
};
