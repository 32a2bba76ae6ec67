/* rope_cases.c - shapes, tolerances, properties and bench points of RoPE. */
#include <math.h>

#include "liger/ops/rope/rope.h"
#include "liger/ops/rope/rope_ref.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

/* Both functions share one order: what is read, the tables, what is written. Backward's loss is a function of a q and a
 * k that the gradients do not depend on; they stand behind the tensors of the call. */
enum { Q, K, COS, SIN, Q_OUT, K_OUT, FORWARD_TENSORS, LOSS_Q = FORWARD_TENSORS, LOSS_K, BACKWARD_TENSORS };
enum { BATCH, SEQ, Q_HEADS, K_HEADS, DIM, ROTARY, TABLE_BATCH /* 0: two dimensions */, COS_COLS, SIN_COLS, OPERAND };
enum { TEMPORAL = OPERAND + 1, HEIGHT, WIDTH /* all 0: no sections */ };
enum {
    TRANSPOSED = 1, /* [batch, seq, heads, dim] memory, as projections write it */
    NO_K = 2,
    BENCH = 4 /* without the tensors of the loss */
};

static struct tensor_spec heads_spec(const struct op_case *c, const char *name, enum tensor_role role, bool is_k) {
    struct tensor_spec spec = {.name = name,
                               .role = role,
                               .kind = KIND_T,
                               .values = VALUES_NORMAL,
                               .ndim = 4,
                               .shape = {c->size[BATCH], c->size[is_k ? K_HEADS : Q_HEADS], c->size[SEQ], c->size[DIM]},
                               .absent = is_k && c->flags & NO_K,
                               .gaps = true,
                               .specials = role == ROLE_IN,
                               .ranges = OP_EVERY_RANGE,
                               .relative = 1.05,
                               .absolute = 4, /* two products and a sum in f32: 3u of the pair's length */
                               .steps = 1};   /* the two products */
    if (c->flags & TRANSPOSED) spec.order[0] = 0, spec.order[1] = 2, spec.order[2] = 1, spec.order[3] = 3;
    return spec;
}

static int64_t planes(const struct op_case *c) {
    return c->size[TEMPORAL] + c->size[HEIGHT] + c->size[WIDTH] > 0 ? 3 : 1;
}

static struct tensor_spec table_spec(const struct op_case *c, const char *name, int cols) {
    struct tensor_spec spec = {.name = name,
                               .role = ROLE_IN,
                               .kind = KIND_WEIGHT,
                               .values = VALUES_NORMAL,
                               .spread = 3,
                               .ndim = 3,
                               .shape = {c->size[TABLE_BATCH], c->size[SEQ], c->size[cols]},
                               .gaps = true};
    if (c->size[TABLE_BATCH] == 0) {
        spec.ndim = 2;
        spec.shape[0] = c->size[SEQ];
        spec.shape[1] = c->size[cols];
    }
    if (planes(c) > 1) {
        spec.ndim = 4;
        spec.shape[0] = planes(c);
        spec.shape[1] = c->size[TABLE_BATCH];
        spec.shape[2] = c->size[SEQ];
        spec.shape[3] = c->size[cols];
    }
    return spec;
}

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    spec[Q] = heads_spec(c, "q", ROLE_IN, false);
    spec[K] = heads_spec(c, "k", ROLE_IN, true);
    spec[COS] = table_spec(c, "cos", COS_COLS);
    spec[SIN] = table_spec(c, "sin", SIN_COLS);
    spec[Q_OUT] = heads_spec(c, "q_out", ROLE_OUT, false);
    spec[K_OUT] = heads_spec(c, "k_out", ROLE_OUT, true);
}

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    describe_forward(c, spec);
    spec[Q].name = "dq";
    spec[K].name = "dk";
    spec[Q_OUT].name = "dq_out";
    spec[K_OUT].name = "dk_out";
    spec[LOSS_Q] = heads_spec(c, "q of the loss", ROLE_IN, false);
    spec[LOSS_K] = heads_spec(c, "k of the loss", ROLE_IN, true);
    spec[LOSS_Q].specials = spec[LOSS_K].specials = false;
    spec[LOSS_Q].ranges = spec[LOSS_K].ranges = 0;
    if (c->flags & BENCH) spec[LOSS_Q].absent = spec[LOSS_K].absent = true;
}

/* Of one plane. */
static int64_t table_rows(const struct op_case *c) {
    return (c->size[TABLE_BATCH] ? c->size[TABLE_BATCH] : 1) * c->size[SEQ];
}

/* The tables hold the cosine and the sine of one angle. */
static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t row = 0; row < planes(c) * table_rows(c); row++)
        for (int64_t i = 0; i < c->size[ROTARY] / 2; i++) {
            double *at = t[COS] + row * c->size[COS_COLS] + i, angle = *at;
            *at = cos(angle);
            t[SIN][row * c->size[SIN_COLS] + i] = sin(angle);
        }
}

static struct rope_ref ref_of(const struct op_case *c, const struct op_types *types, bool is_k, bool inverse) {
    return (struct rope_ref){
        .batch = c->size[BATCH],
        .heads = c->size[is_k ? K_HEADS : Q_HEADS],
        .seq = c->size[SEQ],
        .dim = c->size[DIM],
        .half = c->size[ROTARY] / 2,
        .table_batch = c->size[TABLE_BATCH] ? c->size[TABLE_BATCH] : 1,
        .cos_cols = c->size[COS_COLS],
        .sin_cols = c->size[SIN_COLS],
        .temporal = c->size[TEMPORAL],
        .height = c->size[HEIGHT],
        .plane_rows = planes(c) > 1 ? table_rows(c) : 0,
        .operand = types->t == LIGER_DTYPE_NONE ? LIGER_DTYPE_NONE : (liger_dtype)c->size[OPERAND],
        .inverse = inverse,
    };
}

static void reference(const struct op_case *c, const struct op_types *types, double *const *t, bool inverse) {
    const struct rope_ref q = ref_of(c, types, false, inverse), k = ref_of(c, types, true, inverse);
    rope_ref(&q, t[Q], t[COS], t[SIN], t[Q_OUT]);
    if (t[K]) rope_ref(&k, t[K], t[COS], t[SIN], t[K_OUT]);
}
static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    reference(c, types, t, false);
}
static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    reference(c, types, t, true);
}

/* The fields of both structs that are no tensors have the same names. */
#define FILL(to)                                                                                                       \
    (to)->rotary = c->size[ROTARY], (to)->operand_dtype = (int32_t)c->size[OPERAND],                                   \
    (to)->temporal = c->size[TEMPORAL], (to)->height = c->size[HEIGHT], (to)->width = c->size[WIDTH]
static void forward_options(const struct op_case *c, void *args) { FILL((liger_rope_forward_args *)args); }
static void backward_options(const struct op_case *c, void *args) { FILL((liger_rope_backward_args *)args); }
OP_DOOR(rope_forward, forward_options)
OP_DOOR(rope_backward, backward_options)

static const struct op_case cases[] = {
    {.label = "2x5, 4+2 heads of 16", .size = {2, 5, 4, 2, 16, 16, 2, 16, 16}, .flags = TRANSPOSED},
    {.label = "heads first in memory", .size = {2, 5, 3, 1, 32, 32, 1, 32, 40}},
    {.label = "two-dimensional tables", .size = {3, 4, 2, 2, 24, 24, 0, 24, 40}, .flags = TRANSPOSED},
    {.label = "angles per batch", .size = {3, 4, 5, 1, 64, 64, 3, 32, 32}, .flags = TRANSPOSED},
    {.label = "partial rotation", .size = {2, 3, 3, 2, 80, 32, 1, 32, 40}, .flags = TRANSPOSED},
    {.label = "odd head size", .size = {1, 7, 2, 1, 37, 36, 1, 38, 54}, .flags = TRANSPOSED},
    {.label = "half not a whole vector", .size = {1, 4, 3, 3, 72, 72, 1, 72, 73}},
    {.label = "one pair", .size = {1, 3, 1, 1, 2, 2, 1, 1, 9}},
    {.label = "no rotation", .size = {2, 3, 2, 1, 8, 0, 1, 8, 24}, .flags = TRANSPOSED},
    {.label = "no k", .size = {1, 5, 7, 0, 48, 48, 1, 48, 49}, .flags = TRANSPOSED | NO_K},
    {.label = "operands rounded to bf16", .size = {1, 5, 2, 2, 32, 30, 1, 32, 40, LIGER_BF16}, .flags = TRANSPOSED},
    {.label = "operands rounded to f16", .size = {1, 5, 2, 2, 40, 24, 1, 32, 48, LIGER_F16}},
    {.label = "one token, 33+1 heads", .size = {1, 1, 33, 1, 128, 128, 1, 128, 129}, .flags = TRANSPOSED},
    {.label = "131 tokens, one head", .size = {1, 131, 1, 0, 32, 32, 1, 32, 40}, .flags = NO_K},
    {.label = "wide head", .size = {1, 2, 2, 1, 1100, 1040, 1, 520, 536}},
    {.label = "sections of whole vectors",
     .size = {2, 5, 4, 2, 128, 128, 2, 128, 128, 0, 16, 24, 24},
     .flags = TRANSPOSED},
    {.label = "sections of odd widths", .size = {2, 3, 2, 1, 64, 64, 1, 64, 72, 0, 11, 3, 18}},
    {.label = "sections, wider tables", .size = {3, 4, 3, 2, 32, 32, 3, 40, 48, 0, 4, 8, 4}, .flags = TRANSPOSED},
    {.label = "sections, partial rotation", .size = {2, 3, 2, 1, 80, 48, 2, 48, 40, 0, 8, 8, 8}},
    {.label = "sections, odd head size", .size = {1, 7, 2, 1, 37, 36, 1, 38, 54, 0, 5, 6, 7}, .flags = TRANSPOSED},
    {.label = "an empty first section", .size = {1, 3, 2, 2, 33, 32, 1, 32, 32, 0, 0, 8, 8}},
    {.label = "the first section alone", .size = {1, 3, 2, 0, 32, 32, 1, 32, 32, 0, 16, 0, 0}, .flags = NO_K},
    {.label = "the last section alone", .size = {1, 3, 2, 2, 32, 32, 1, 32, 32, 0, 0, 0, 16}},
    {.label = "sections, rounded to bf16", .size = {1, 5, 2, 2, 32, 32, 1, 32, 40, LIGER_BF16, 8, 4, 4}},
    {.label = "sections, no sequence", .size = {2, 0, 2, 2, 16, 16, 1, 16, 16, 0, 2, 3, 3}, .edge = true},
    {.label = "no batch", .size = {0, 5, 2, 2, 16, 16, 1, 16, 16}, .edge = true},
    {.label = "no sequence", .size = {2, 0, 2, 2, 16, 16, 1, 16, 16}, .edge = true},
    {.label = "no k heads", .size = {2, 3, 2, 0, 16, 16, 1, 16, 16}, .edge = true},
    {.label = "head size 1", .size = {2, 3, 2, 1, 1, 0, 1, 1, 2}, .edge = true},
    {.label = "2x512, 16+8 heads", .size = {2, 512, 16, 8, 64, 64, 1, 64, 64}, .flags = TRANSPOSED, .large = true},
    {.label = "2x512, sections",
     .size = {2, 512, 16, 8, 64, 64, 2, 64, 64, 0, 8, 12, 12},
     .flags = TRANSPOSED,
     .large = true},
};

/* ---- errors: what no rule of a door says ------------------------------------------------------------------------ */

#define PROVOCATIONS(op)                                                                                               \
    {"rotary odd", OP_SIZE(ROTARY, 15), LIGER_ERR_ARGUMENT, {op ": rotary", "15", "16"}},                              \
        {"rotary beyond dim", OP_SIZE(ROTARY, 18), LIGER_ERR_ARGUMENT, {op ": rotary", "18", "16"}},                   \
        {"rotary negative", OP_SIZE(ROTARY, -2), LIGER_ERR_ARGUMENT, {op ": rotary", "-2", "16"}},                     \
        {"k present, its result not", OP_ABSENT(K_OUT), LIGER_ERR_ARGUMENT, {op ": ", "k_out", "NULL"}},               \
        {"cos of one dimension", OP_NDIM(COS, 1), LIGER_ERR_SHAPE, {op ": cos", "1 dimensions", "3"}},                 \
        {"cos for three batches", OP_SHAPE(COS, 0, 3), LIGER_ERR_SHAPE, {op ": cos", "3", "batch of 2"}},              \
        {"cos shorter", OP_SHAPE(COS, 1, 4), LIGER_ERR_SHAPE, {op ": cos", "4", "length 5"}},                          \
        {"cos too narrow", OP_SHAPE(COS, 2, 7), LIGER_ERR_SHAPE, {op ": cos", "7", "8"}},                              \
        {"sin of one dimension", OP_NDIM(SIN, 1), LIGER_ERR_SHAPE, {op ": sin", "1 dimensions", "3"}},                 \
        {"sin shorter", OP_SHAPE(SIN, 1, 4), LIGER_ERR_SHAPE, {op ": sin", "4", "length 5"}}, {                        \
        "sin too narrow", OP_SHAPE(SIN, 2, 7), LIGER_ERR_SHAPE, { op ": sin", "7", "8" }                               \
    }

static const struct op_provocation forward_provocations[] = {PROVOCATIONS("rope_forward")};
static const struct op_provocation backward_provocations[] = {PROVOCATIONS("rope_backward")};

/* Tables with planes in the place of the first case's, all planes in the same memory. */
static void give_planes(struct op_call *call, int64_t count) {
    for (int i = COS; i <= SIN; i++) {
        liger_tensor *table = &call->t[i];
        for (int d = table->ndim++; d > 0; d--) {
            table->shape[d] = table->shape[d - 1];
            table->stride[d] = table->stride[d - 1];
        }
        table->shape[0] = count;
        table->stride[0] = 0;
    }
}
static void give_two(struct op_call *call) { give_planes(call, 2); }
static void give_three(struct op_call *call) { give_planes(call, 3); }
static void give_three_batches(struct op_call *call) {
    give_planes(call, 3);
    call->t[COS].shape[1] = 3;
}
/* With ten columns of the first: a sum that is 8 in 64 bits. */
static void give_very_many(struct op_call *call) {
    give_planes(call, 3);
    call->c.size[HEIGHT] = call->c.size[WIDTH] = INT64_MAX;
}

/* Of either function. */
static const struct op_provocation section_provocations[] = {
    {"sections without planes", OP_SIZE(TEMPORAL, 8), LIGER_ERR_SHAPE, {": cos", "3 dimensions", "4"}},
    {"planes without sections", {CHANGES_NOTHING}, LIGER_ERR_SHAPE, {": cos", "4 dimensions", "3"}, give_three},
    {"two planes", OP_SIZE(TEMPORAL, 8), LIGER_ERR_SHAPE, {": cos", "shape[0] is 2", "3"}, give_two},
    {"planes for three batches", OP_SIZE(WIDTH, 8), LIGER_ERR_SHAPE, {": cos", "3", "batch of 2"}, give_three_batches},
    {"too few columns", OP_SIZE(HEIGHT, 7), LIGER_ERR_ARGUMENT, {": temporal", "0, 7 and 0", "= 8"}, give_three},
    {"too many columns", OP_SIZE(WIDTH, 9), LIGER_ERR_ARGUMENT, {": temporal", "0, 0 and 9", "= 8"}, give_three},
    {"2^64 + 8 columns", OP_SIZE(TEMPORAL, 10), LIGER_ERR_ARGUMENT, {": temporal", "10", "= 8"}, give_very_many},
};

/* ---- properties ------------------------------------------------------------------------------------------------- */

/* Calls check for each pair of x and y, [.., dim] tensors of `count` elements. */
static const char *for_each_pair(struct op_run *run, const double *x, const double *y, int64_t count,
                                 const char *(*check)(struct op_run *, const double *, const double *, int64_t half)) {
    const int64_t dim = run->c.size[DIM], half = run->c.size[ROTARY] / 2;
    const char *wrong = NULL;
    for (int64_t row = 0; row < count / dim && !wrong; row++)
        for (int64_t i = 0; i < half && !wrong; i++) wrong = check(run, x + row * dim + i, y + row * dim + i, half);
    return wrong;
}

/* Roundings of a result and of the tables, as a share of a pair's length. */
static double slack(const struct op_run *run) {
    return 3 * (format_unit(run->types.t) + format_unit(run->types.weight)) + 0x1p-22;
}

static const char *same_length(struct op_run *run, const double *x, const double *y, int64_t half) {
    const double before = hypot(x[0], x[half]), after = hypot(y[0], y[half]);
    const double budget = slack(run) * before + 2 * format_smallest(run->types.t);
    if (fabs(after - before) <= budget) return NULL;
    return op_run_text(run, "a pair of length %g became %g long", before, after);
}

static const char rounded_first[] = "rotation: q and k are rounded before they are rotated";

/* A rotation keeps lengths. */
static const char *keeps_lengths(struct op_run *run) {
    if (run->c.size[OPERAND]) return op_run_not_applicable(run, rounded_first);
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    const char *wrong = for_each_pair(run, run->t[Q], run->t[Q_OUT], run->count[Q], same_length);
    if (wrong == NULL && run->t[K]) wrong = for_each_pair(run, run->t[K], run->t[K_OUT], run->count[K], same_length);
    return wrong;
}

static const char *same_pair(struct op_run *run, const double *x, const double *y, int64_t half) {
    const double budget = 2 * slack(run) * hypot(x[0], x[half]) + 4 * format_smallest(run->types.t);
    if (hypot(y[0] - x[0], y[half] - x[half]) <= budget) return NULL;
    return op_run_text(run, "(%g, %g) came back as (%g, %g)", x[0], x[half], y[0], y[half]);
}

/* Backward undoes forward. */
static const char *undoes_forward(struct op_run *run) {
    const char *wrong = NULL;
    if (run->c.size[OPERAND]) return op_run_not_applicable(run, rounded_first);
    struct op_run *forward = op_run_new(run->context, &rope_forward_cases, &run->c, run->types, 7);
    if (forward == NULL) return "no memory";
    for (int64_t i = 0; i < run->count[COS]; i++) run->t[COS][i] = forward->t[COS][i];
    for (int64_t i = 0; i < run->count[SIN]; i++) run->t[SIN][i] = forward->t[SIN][i];
    if (op_run_call(forward) != LIGER_OK) wrong = "forward failed";
    for (int64_t i = 0; i < run->count[Q]; i++) run->t[Q][i] = forward->t[Q_OUT][i];
    if (!wrong && op_run_call(run) != LIGER_OK) wrong = "backward failed";
    if (!wrong) wrong = for_each_pair(run, forward->t[Q], run->t[Q_OUT], run->count[Q], same_pair);
    op_run_free(forward);
    return wrong;
}

static const struct op_property forward_properties[] = {{"keeps lengths", keeps_lengths}};
static const struct op_property backward_properties[] = {{"undoes forward", undoes_forward}};

/* ---- gradients, benches ----------------------------------------------------------------------------------------- */

/* upstream · rope(x) of one of q and k */
static double dot(const struct op_case *c, const struct op_types *types, double *const *t, bool is_k) {
    const struct rope_ref all = ref_of(c, types, is_k, false);
    const double *x = t[is_k ? LOSS_K : LOSS_Q], *upstream = t[is_k ? K : Q];
    double sum = 0, y[2048];
    if (x == NULL) return 0;
    for (int64_t row = 0; row < all.batch * all.heads * all.seq; row++) {
        const int64_t s = row % all.seq, batch = row / all.seq / all.heads;
        const int64_t angle = (all.table_batch == 1 ? 0 : batch) * all.seq + s;
        struct rope_ref one = all;
        one.batch = one.heads = one.seq = one.table_batch = 1;
        rope_ref(&one, x + row * all.dim, t[COS] + angle * all.cos_cols, t[SIN] + angle * all.sin_cols, y);
        for (int64_t i = 0; i < all.dim; i++) sum += upstream[row * all.dim + i] * y[i];
    }
    return sum;
}

static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    return dot(c, types, t, false) + (t[K] ? dot(c, types, t, true) : 0);
}

static const struct op_gradient gradients[] = {{Q_OUT, LOSS_Q}, {K_OUT, LOSS_K}};

static double bytes(const struct op_case *c, const struct op_types *types) {
    const double heads = (double)(c->size[Q_HEADS] + c->size[K_HEADS]);
    const double tokens = (double)(c->size[BATCH] * c->size[SEQ]);
    const double tables = (double)(table_rows(c) * c->size[ROTARY]);
    return 2 * tokens * heads * (double)c->size[DIM] * (double)liger_dtype_size(types->t) +
           tables * (double)liger_dtype_size(types->weight);
}

static const struct op_case bench[] = {
    {.label = "4x4096, 32+8 heads of 128",
     .size = {4, 4096, 32, 8, 128, 128, 1, 128, 128},
     .flags = TRANSPOSED | BENCH,
     .dtypes = 1u << LIGER_BF16,
     .large = true},
    {.label = "4x4096, 32+8 heads of 128, sections",
     .size = {4, 4096, 32, 8, 128, 128, 4, 128, 128, 0, 16, 24, 24},
     .flags = TRANSPOSED | BENCH,
     .dtypes = 1u << LIGER_BF16,
     .large = true},
    {.label = "2x1024, 16+8 heads of 64", .size = {2, 1024, 16, 8, 64, 64, 1, 64, 64}, .flags = TRANSPOSED | BENCH},
};

const struct op_cases rope_forward_cases = {
    .name = "rope_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_rope_forward,
    .reference = reference_forward,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    OP_PROVOCATIONS(forward_provocations),
    OP_MORE_PROVOCATIONS(section_provocations),
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
    .bytes = bytes,
};

const struct op_cases rope_backward_cases = {
    .name = "rope_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_rope_backward,
    .reference = reference_backward,
    .no_naive = OP_NO_SUMS,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_PROVOCATIONS(backward_provocations),
    OP_MORE_PROVOCATIONS(section_provocations),
    OP_PROPERTIES(backward_properties),
    OP_BENCH(bench),
    .bytes = bytes,
};
