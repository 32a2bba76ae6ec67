/* linear_cross_entropy_cases.c - shapes, tolerances, properties and bench points of the fused linear cross entropy.
 *
 * Logits are exact (linear_head_cases.h); only the GENERAL cases, in f32, have logits with an error of their own. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "liger/core/context_state.h"
#include "liger/ops/cross_entropy/cross_entropy_cases.h"
#include "liger/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "liger/ops/linear_cross_entropy/linear_cross_entropy_ref.h"
#include "tests/harness/compare.h"
#include "tests/harness/linear_head_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

/* Both functions share one order of tensors; backward has no results. */
enum { X, WEIGHT, BIAS, TARGET, CLASS_WEIGHT, UPSTREAM, LOGITS, DX, DWEIGHT, DBIAS, BACKWARD_TENSORS };
enum { LOSS = BACKWARD_TENSORS, Z_LOSS, ACCURACY, PREDICTED, COUNTS, FORWARD_TENSORS };
enum { ROWS = HEAD_ROWS, HIDDEN = HEAD_HIDDEN, VOCAB = HEAD_VOCAB, CHUNK = HEAD_CHUNK };
enum { SLICE = HEAD_SIZES }; /* 0, for one pass, or the columns for two */
enum {
    WEIGHTED = 4,
    BIASED = 8,
    SCALED = 16,
    BY_ROW = 32, /* an upstream: one value, one per row */
    TOKEN = 64,
    RAW = 128,
    NO_DX = 256,
    NO_DWEIGHT = 512,
    NO_DBIAS = 1024,
    BARE = 2048,    /* of the results only the loss */
    IGNORED = 4096, /* every target is ignored */
    GENERAL = 8192,
    POISON = 16384, /* ignored rows of x hold a NaN and an infinity */
    LOSS_ONLY = NO_DX | NO_DWEIGHT | NO_DBIAS
};

static bool has(const struct op_case *c, uint32_t flag) { return (c->flags & flag) != 0; }
static int64_t chunk_of(const struct op_case *c) { return c->size[SLICE] ? c->size[ROWS] : c->size[CHUNK]; }

static const struct head_tensors at = {.bias = BIAS, .dx = DX, .dweight = DWEIGHT, .dbias = DBIAS};

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static void describe_inputs(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t rows = c->size[ROWS], hidden = c->size[HIDDEN], vocab = c->size[VOCAB];
    head_describe_operands(rows, hidden, vocab, &spec[X], &spec[WEIGHT], &spec[BIAS]);
    /* Near the ends of a soft cap, where an offset takes the logits, 1 - tanh² has no digits left in f32. */
    if (!has(c, GENERAL) && c->scalar[SOFTCAP] == 0) spec[X].ranges = 1u << RANGE_OFFSET;
    spec[BIAS].absent = !has(c, BIASED);
    spec[TARGET] = cross_entropy_target(rows, vocab, has(c, IGNORED));
    spec[CLASS_WEIGHT] = cross_entropy_weight("class_weight", vocab, has(c, WEIGHTED));
    spec[UPSTREAM] = cross_entropy_upstream(rows, has(c, BY_ROW), has(c, SCALED | BY_ROW));
    spec[LOGITS] = head_chunk("logits", chunk_of(c), c->size[SLICE] ? c->size[SLICE] : vocab);
    spec[LOGITS].gaps = c->size[SLICE] == 0;
}

static void describe_gradients(const struct op_case *c, struct tensor_spec *spec) {
    head_describe_gradients(c->size[ROWS], c->size[HIDDEN], c->size[VOCAB], &spec[DX], &spec[DWEIGHT], &spec[DBIAS]);
    spec[DX].absent = has(c, NO_DX), spec[DWEIGHT].absent = has(c, NO_DWEIGHT), spec[DBIAS].absent = has(c, NO_DBIAS);
}

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    describe_inputs(c, spec);
    describe_gradients(c, spec);
}

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t rows = c->size[ROWS];
    describe_backward(c, spec);
    cross_entropy_describe_results(c, &spec[LOSS], rows, !has(c, BARE));
    spec[LOSS].kind = spec[Z_LOSS].kind = KIND_WEIGHT;
    /* A logit in f32 has an error of u times the number of its terms times their magnitudes, about 4 hidden u in all; the
     * loss takes twice the largest. */
    if (has(c, GENERAL)) spec[LOSS].absolute += 8.0 * (double)c->size[HIDDEN];
    /* A sum of n positive terms, in whatever order: (n - 1) u. */
    spec[COUNTS] = (struct tensor_spec){.name = "counts",
                                        .role = ROLE_OUT,
                                        .kind = KIND_F32,
                                        .ndim = 1,
                                        .shape = {4},
                                        .absent = has(c, BARE),
                                        .relative = (double)(rows > c->size[VOCAB] ? rows : c->size[VOCAB])};
}

static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t r = 0; has(c, POISON) && r < c->size[ROWS]; r++)
        if (t[TARGET][r] < 0) t[X][r * c->size[HIDDEN]] = NAN, t[X][r * c->size[HIDDEN] + 1] = INFINITY;
    if (has(c, GENERAL)) return;
    head_coarsen(t[X], c->size[ROWS] * c->size[HIDDEN]);
    head_coarsen(t[WEIGHT], c->size[VOCAB] * c->size[HIDDEN]);
    head_coarsen(t[BIAS], c->size[VOCAB]);
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static void forward_options(const struct op_case *c, void *args) {
    liger_linear_cross_entropy_forward_args *to = args;
    CROSS_ENTROPY_FILL(to, c);
    to->token_scaling = has(c, TOKEN);
    to->raw_gradient = has(c, RAW);
}
static void backward_options(const struct op_case *c, void *args) {
    liger_linear_cross_entropy_backward_args *to = args;
    CROSS_ENTROPY_FILL(to, c);
    to->token_scaling = has(c, TOKEN);
}
OP_DOOR(linear_cross_entropy_forward, forward_options)
OP_DOOR_WORKSPACE(linear_cross_entropy_forward)
OP_DOOR(linear_cross_entropy_backward, backward_options)
OP_DOOR_WORKSPACE(linear_cross_entropy_backward)

/* ---- reference -------------------------------------------------------------------------------------------------- */

static struct linear_cross_entropy_ref reference_of(const struct op_case *c, const struct op_types *types,
                                                    double *const *t) {
    struct linear_cross_entropy_ref ref = {
        .loss =
            {
                .rows = c->size[ROWS],
                .vocab = c->size[VOCAB],
                CROSS_ENTROPY_OPTIONS_OF(c),
                .token_scaling = has(c, TOKEN),
                .upstream_by_row = has(c, BY_ROW),
                .target = t[TARGET],
                .weight = t[CLASS_WEIGHT],
                .upstream = t[UPSTREAM],
            },
        .head = head_of(c, types, t, &at),
        .raw_gradient = has(c, RAW),
    };
    if (c->size[SLICE]) ref.head.chunk = c->size[ROWS];
    return ref;
}

static void evaluate(const struct op_case *c, const struct op_types *types, double *const *t, bool results,
                     void (*loops)(struct linear_cross_entropy_ref)) {
    struct linear_cross_entropy_ref ref = reference_of(c, types, t);
    head_add_gradients(&ref.head, t, &at);
    if (results) {
        ref.counts = t[COUNTS], ref.loss.loss = t[LOSS], ref.loss.z_loss = t[Z_LOSS];
        ref.loss.accuracy = t[ACCURACY], ref.loss.predicted = t[PREDICTED];
    }
    loops(ref);
    head_release(&ref.head);
}
static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate(c, types, t, true, linear_cross_entropy_reference);
}
static void naive_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate(c, types, t, true, linear_cross_entropy_naive);
}
static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate(c, types, t, false, linear_cross_entropy_reference);
}
static void naive_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate(c, types, t, false, linear_cross_entropy_naive);
}

/* The same loss whose gradient a row-wise upstream multiplies: with MEAN and SUM a row's share of it. The factor of
 * token_scaling takes part in no gradient, so that such a case runs in mode edge. */
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    struct linear_cross_entropy_ref ref = reference_of(c, types, t);
    double *rows = head_doubles(c->size[ROWS]), counts[4] = {0}, total = 0;
    const bool mean = ref.loss.reduction == LIGER_REDUCTION_MEAN;
    ref.loss.loss = rows, ref.counts = counts;
    ref.loss.reduction = mean && ref.loss.lse_square_scale == 0 ? LIGER_REDUCTION_NONE : cross_entropy_reduction(c);
    if (ref.loss.reduction == LIGER_REDUCTION_SUM) ref.loss.reduction = LIGER_REDUCTION_NONE;
    linear_cross_entropy_reference(ref);
    const bool by_rows = ref.loss.reduction == LIGER_REDUCTION_NONE;
    for (int64_t r = 0; r < (by_rows ? c->size[ROWS] : 1); r++)
        total += rows[r] * (t[UPSTREAM] ? t[UPSTREAM][has(c, BY_ROW) ? r : 0] : 1) / (mean && by_rows ? counts[1] : 1);
    head_release(&ref.head);
    free(rows);
    return total;
}

/* ---- budgets ---------------------------------------------------------------------------------------------------- */

/* The gradient of the logits has an f32 error of 16 u of the largest (cross_entropy_cases.c); f32 logits err by hidden u of
 * theirs, about 4, twice over. */
static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    const int64_t elements = c->size[ROWS] * c->size[VOCAB];
    struct linear_cross_entropy_ref ref = reference_of(c, types, t);
    double *error = head_doubles(elements);
    linear_cross_entropy_reference(ref);
    const double largest = compare_magnitude(elements, ref.head.dlogits);
    for (int64_t i = 0; i < elements; i++) error[i] = 16 * largest;
    head_raise(&ref.head, error, has(c, GENERAL) ? 8.0 * (double)c->size[HIDDEN] : 0, &at, magnitude);
    free(error);
    head_release(&ref.head);
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

/* The first has every tensor. Chunks: of one row, prime, a divisor, all rows, more than all. Slices: as small as can be, one
 * column less than the vocabulary, and such that a row of the vocabulary fits with and without a pitch of 16 bytes. */
/* clang-format off */
static const struct op_case forward_cases[] = {
    {"all",                                     {11, 9, 33, 3},          {.1, 1e-3, 8}, .flags = WEIGHTED | BIASED | SCALED},
    {"1x1x1",                                   {1, 1, 1, 1}},
    {"5x3x2, chunk 1",                          {5, 3, 2, 1},            .flags = SUM | BIASED},
    {"6x8x16, chunk 2",                         {6, 8, 16, 2},           .flags = NONE},
    {"7x17x15, chunk 5, none",                  {7, 17, 15, 5},          {.1, 1e-3}, .flags = NONE | BIASED | BY_ROW},
    {"12x16x64, one chunk",                     {12, 16, 64, 12},        .flags = BIASED},
    {"11x31x67, buffer too large",              {11, 31, 67, 16},        .flags = WEIGHTED | SUM},
    {"13x20x41 token",                          {13, 20, 41, 4},         {.1, 1e-3}, .flags = TOKEN | WEIGHTED | BIASED},
    {"13x20x41 token, none",                    {13, 20, 41, 4},         .flags = TOKEN | NONE | BY_ROW},
    {"13x20x41 raw",                            {13, 20, 41, 4},         {0, 1e-3}, .flags = RAW | BIASED},
    {"13x20x41 raw weighted",                   {13, 20, 41, 7},         {.2, 1e-3, 12}, .flags = RAW | WEIGHTED | BIASED | SCALED},
    {"9x12x35 upstream of rows, mean",          {9, 12, 35, 4},          .flags = BY_ROW | BIASED},
    {"9x12x35 cap",                             {9, 12, 35, 4},          {0, 0, 5}, .flags = BIASED},
    {"9x12x35 no dx",                           {9, 12, 35, 4},          .flags = NO_DX | BIASED},
    {"9x12x35 no dweight",                      {9, 12, 35, 4},          .flags = NO_DWEIGHT | BIASED},
    {"9x12x35 no dbias",                        {9, 12, 35, 4},          .flags = NO_DBIAS | BIASED},
    {"9x12x35 only dx",                         {9, 12, 35, 4},          .flags = NO_DWEIGHT | NO_DBIAS | BARE},
    {"9x12x35 loss only",                       {9, 12, 35, 4},          {.1, 1e-3}, .flags = LOSS_ONLY | SUM},
    {"9x12x35 bare loss",                       {9, 12, 35, 4},          .flags = LOSS_ONLY | BARE},
    {"23x45x131 general",                       {23, 45, 131, 8},        .flags = GENERAL | BARE | BIASED, .dtypes = 1u << LIGER_F32},
    {"7x9x33 two passes, all",                  {7, 9, 33, 0, 5},        {.1, 1e-3, 8}, .flags = WEIGHTED | BIASED | SCALED},
    {"7x9x33 two passes, weights without smoothing", {7, 9, 33, 0, 6},        .flags = WEIGHTED | BIASED},
    {"7x9x33 two passes, smoothing without weights", {7, 9, 33, 0, 8},        {.2}, .flags = BY_ROW | SUM},
    {"13x20x41 two passes, token",              {13, 20, 41, 0, 4},      {.1, 1e-3}, .flags = TOKEN | WEIGHTED},
    {"13x20x41 two passes, token, none",        {13, 20, 41, 0, 16},     .flags = TOKEN | NONE | BY_ROW},
    {"13x20x41 two passes, raw",                {13, 20, 41, 0, 40},     {.2, 1e-3, 12}, .flags = RAW | WEIGHTED | BIASED | SCALED},
    {"9x12x35 two passes, cap",                 {9, 12, 35, 0, 7},       {0, 0, 5}, .flags = BIASED},
    {"9x12x35 two passes, only dx",             {9, 12, 35, 0, 4},       .flags = NO_DWEIGHT | NO_DBIAS | BARE},
    {"9x12x35 two passes, only dweight",        {9, 12, 35, 0, 4},       .flags = NO_DX | NO_DBIAS | BARE},
    {"9x12x35 two passes, only dbias",          {9, 12, 35, 0, 4},       .flags = NO_DX | NO_DWEIGHT | BIASED},
    {"9x12x35 two passes, loss only",           {9, 12, 35, 0, 4},       {.1, 1e-3}, .flags = LOSS_ONLY},
    {"23x45x131 general, two passes",           {23, 45, 131, 0, 48},    .flags = GENERAL | BARE | BIASED, .dtypes = 1u << LIGER_F32},
    {"150x33x1031 two passes",                  {150, 33, 1031, 0, 256}, {.1, 1e-4}, .flags = SUM | BIASED | WEIGHTED, .large = true},
    {"150x33x1031",                             {150, 33, 1031, 64},     {0, 1e-4}, .flags = SUM | BIASED, .large = true},
    {"no rows",                                 {0, 9, 33, 3},           .flags = BIASED, .edge = true},
    {"no rows, none, weighted",                 {0, 9, 33, 3},           .flags = NONE | WEIGHTED | BY_ROW, .edge = true},
    {"no rows, no buffer",                      {0, 9, 33, 0},           .flags = SUM, .edge = true},
    {"all ignored",                             {5, 9, 33, 2},           .flags = IGNORED | BIASED, .edge = true},
    {"all ignored, two passes",                 {5, 9, 33, 0, 8},        .flags = IGNORED | BIASED, .edge = true},
    {"all ignored, weighted, raw",              {5, 9, 33, 2},           .flags = IGNORED | WEIGHTED | RAW, .edge = true},
    {"NaN and Inf in ignored rows",             {7, 9, 33, 3},           .flags = POISON | BIASED, .edge = true},
    {"NaN and Inf in ignored rows, two passes", {7, 9, 33, 0, 8},        .flags = POISON | BIASED, .edge = true},
};

static const struct op_case backward_cases[] = {
    {"all",                            {11, 9, 33, 3},     {.1, 1e-3, 8}, .flags = WEIGHTED | BIASED | SCALED},
    {"1x1x1",                          {1, 1, 1, 1}},
    {"5x3x7, chunk 1",                 {5, 3, 7, 1},       .flags = SUM | BIASED | SCALED},
    {"7x17x15, chunk 5, none",         {7, 17, 15, 5},     {.1, 1e-3, 9}, .flags = NONE | BIASED | BY_ROW},
    {"11x13x29, buffer too large",     {11, 13, 29, 16},   .flags = NONE | WEIGHTED | BY_ROW},
    {"9x12x35 mean, upstream of rows", {9, 12, 35, 4},     {.1}, .flags = BY_ROW | WEIGHTED},
    {"9x12x35 mean",                   {9, 12, 35, 2},     {.1, 1e-3}, .flags = SCALED | WEIGHTED},
    {"9x12x35 two passes",             {9, 12, 35, 0, 8},  {.1, 1e-3, 9}, .flags = NONE | BIASED | WEIGHTED | BY_ROW},
    {"9x12x35 two passes, mean",       {9, 12, 35, 0, 13}, {.1, 1e-3}, .flags = SCALED | WEIGHTED},
    {"9x12x35 only dweight",           {9, 12, 35, 4},     .flags = NONE | BY_ROW | NO_DX | NO_DBIAS},
    {"9x12x35 only dx",                {9, 12, 35, 4},     .flags = NONE | BY_ROW | NO_DWEIGHT | NO_DBIAS},
    {"9x12x35 only dbias",             {9, 12, 35, 4},     .flags = NO_DWEIGHT | NO_DX | BIASED},
    {"no rows",                        {0, 9, 33, 3},      .flags = NONE | BY_ROW | BIASED, .edge = true},
    {"all ignored",                    {5, 9, 33, 2},      .flags = IGNORED | NONE | BY_ROW, .edge = true},
    {"NaN and Inf in ignored rows",    {7, 9, 33, 3},      .flags = POISON | NONE | BY_ROW, .edge = true},
    {"13x20x41 token",                 {13, 20, 41, 4},    {.1, 1e-3}, .flags = TOKEN | NONE | BY_ROW, .edge = true}, /* not in mode grad: see loss_backward */
};
/* clang-format on */

static const struct op_gradient gradients[] = {{DX, X}, {DWEIGHT, WEIGHT}, {DBIAS, BIAS}};

/* ---- refusals --------------------------------------------------------------------------------------------------- */

static void wide(struct op_call *call) { call->t[LOGITS].stride[0] = 34; }
static void narrow_slice(struct op_call *call) { call->t[LOGITS].shape[1] = call->t[LOGITS].stride[0] = 2; }
static void gaps_in_slice(struct op_call *call) { call->t[LOGITS].shape[1] = 8, call->t[LOGITS].stride[0] = 9; }

static const struct op_provocation shared_provocations[] = {
    HEAD_PROVOCATIONS(LOGITS, "logits"),
    {"no hidden size", OP_SHAPE(WEIGHT, 1, 0), LIGER_ERR_SHAPE, {"weight is 33 x 0", "shard"}},
    {"logits wider than the vocabulary", OP_SHAPE(LOGITS, 1, 34), LIGER_ERR_SHAPE, {"logits", "34", "33"}, wide},
    {"a slice of some rows", OP_SHAPE(LOGITS, 1, 32), LIGER_ERR_SHAPE, {"logits is 3 x 32", "33 columns", "11 rows"}},
    {"a slice too narrow", OP_SHAPE(LOGITS, 0, 11), LIGER_ERR_SHAPE, {"logits is 11 x 2", "3 columns"}, narrow_slice},
    {"a slice with gaps",
     OP_SHAPE(LOGITS, 0, 11),
     LIGER_ERR_LAYOUT,
     {"logits", "stride is 9 and not 8"},
     gaps_in_slice},
    HEAD_ROWS_OVERLAP,
};
static const struct op_provocation forward_provocations[] = {CROSS_ENTROPY_RESULT_PROVOCATIONS(LOSS, Z_LOSS, ACCURACY)};

/* ---- properties ------------------------------------------------------------------------------------------------- */

static const char *any_chunk(struct op_run *run) {
    if (run->c.size[SLICE]) return op_run_not_applicable(run, "chunks of any size: the case has slices");
    return head_any_chunk(run);
}

static const char *in_dweight(struct op_run *run) {
    if (run->c.size[SLICE]) return op_run_not_applicable(run, "logits in dweight: the case has slices");
    return head_in_dweight(run, DWEIGHT);
}

/* What one pass gives, two passes give too. */
static const char *any_slice(struct op_run *run) {
    const int64_t rows = run->c.size[ROWS], vocab = run->c.size[VOCAB], least = (vocab + rows - 1) / rows;
    const int64_t most = vocab - 1 > least ? vocab - 1 : least;
    return op_run_any_size(run, SLICE, (int64_t[]){least, (least + most) / 2, most, vocab}, 4);
}

static const char *forward_target_out_of_range(struct op_run *run) {
    return cross_entropy_target_out_of_range(run, TARGET, DX, LOSS);
}
static const char *backward_target_out_of_range(struct op_run *run) {
    return cross_entropy_target_out_of_range(run, TARGET, DX, -1);
}

typedef liger_status question(liger_context *context, const liger_linear_cross_entropy_forward_args *args,
                              size_t *answer);

static int64_t advised(struct op_run *run, question *ask, int64_t rows, int64_t hidden, int64_t vocab, bool trained) {
    liger_linear_cross_entropy_forward_args args = LIGER_LINEAR_CROSS_ENTROPY_FORWARD_ARGS_INIT;
    args.x = liger_tensor_contiguous(run, (int)run->types.t, 2, (const int64_t[]){rows, hidden});
    args.weight = liger_tensor_contiguous(run, (int)run->types.t, 2, (const int64_t[]){vocab, hidden});
    if (trained) args.dx = args.x;
    size_t answer = 0;
    return ask(run->context, &args, &answer) == LIGER_OK ? (int64_t)answer : -1;
}
static int64_t chunk_advised(struct op_run *run, int64_t rows, int64_t hidden, int64_t vocab) {
    return advised(run, liger_linear_cross_entropy_forward_chunk_rows, rows, hidden, vocab, true);
}

/* The advice keeps the logits within the budget, in whole tiles, and never exceeds the rows. On a CPU without a budget they
 * cost at most 48 MB, or 15 % of the gradients. */
static const char *advised_chunk(struct op_run *run) {
    static const int64_t shapes[][3] = {{1, 64, 32000},        {100, 64, 1000},     {100000, 64, 128256},
                                        {70000, 4096, 32000},  {1000, 8, 10000000}, {4096, 4096, 128256},
                                        {INT64_MAX / 16, 1, 5}}; /* nobody has the memory, but a question needs none */
    const int64_t size = (int64_t)liger_dtype_size((int)run->types.t);
    const int64_t step = liger_context_device(run->context) == LIGER_DEVICE_CPU ? 16 : 128;
    for (int k = 0; k < OP_COUNT(shapes); k++) {
        const int64_t rows = shapes[k][0], hidden = shapes[k][1], vocab = shapes[k][2];
        const int64_t part = (rows + vocab) * hidden * size / 100 * 15, least = 48 << 20;
        const int64_t given = run->context->loss_workspace_bytes, by_shape = part > least ? part : least;
        const int64_t budget = given ? given : step == 128 ? 1 << 30 : by_shape;
        const int64_t chunk = chunk_advised(run, rows, hidden, vocab);
        const bool fits = chunk * vocab * size <= budget || chunk == step;
        if (chunk < 1 || chunk > rows || !(chunk == rows || (fits && chunk % step == 0)))
            return op_run_text(run, "%lld rows, vocabulary %lld: chunk of %lld", (long long)rows, (long long)vocab,
                               (long long)chunk);
    }
    return NULL;
}

/* Two passes if, and only if, a budget is named and holds neither an f32 sum of dweight nor the logits; then slice and sum of dx
 * are within it, where they can be. */
static const char *advised_slice(struct op_run *run) {
    static const struct {
        int64_t megabytes, rows, hidden, vocab;
        bool two;
    } asked[] = {{0, 16384, 4096, 128256},
                 {512, 16384, 2048, 248320, .two = true},
                 {2004, 16384, 4096, 128256},
                 {2003, 16384, 4096, 128256, .two = true},
                 {1, 1, 4096, 128256},
                 {1, 2, 64, 1000000}, /* a chunk of one pass */
                 {1, 256, 64, 1000000, .two = true},
                 {1, 128256, 64, 128256},
                 {16, 128000, 64, 128256, .two = true},
                 {64, INT64_MAX / 64, 1, 1 << 30}};
    const int64_t size = (int64_t)liger_dtype_size((int)run->types.t), named = run->context->loss_workspace_bytes;
    const bool cpu = liger_context_device(run->context) == LIGER_DEVICE_CPU;
    const int64_t step = cpu ? 64 : 128, products = cpu ? 0 : 16 << 20;
    const char *wrong = NULL;
    int gained = 0; /* without a sum of dx */
    question *const ask = liger_linear_cross_entropy_forward_slice_cols;
    for (int k = 0; k < OP_COUNT(asked) && wrong == NULL; k++) {
        const int64_t rows = asked[k].rows, vocab = asked[k].vocab, budget = asked[k].megabytes << 20;
        run->context->loss_workspace_bytes = budget;
        const int64_t cols = advised(run, ask, rows, asked[k].hidden, vocab, true);
        const bool two = asked[k].two && size == 2;
        const int64_t sum = rows * asked[k].hidden * 4, above = two ? cols * rows * size + sum + products : 0;
        const bool fits = above <= budget || cols <= step || cols <= step * vocab / rows + 8;
        const int64_t frozen = advised(run, ask, rows, asked[k].hidden, vocab, false);
        const bool frozen_fits = !two || frozen * rows * size + products <= budget || frozen <= step;
        gained += frozen > cols;
        if (two != (cols < vocab) || (two && (!fits || cols % 8 != 0 || cols * rows < vocab)) || frozen < cols ||
            (fits && above <= budget && !frozen_fits))
            wrong = op_run_text(run, "budget of %lld MB, %lld rows, vocabulary %lld: %lld columns",
                                (long long)asked[k].megabytes, (long long)rows, (long long)vocab, (long long)cols);
    }
    if (wrong == NULL && size == 2 && gained == 0) wrong = "slices are no larger without a dx";
    run->context->loss_workspace_bytes = named;
    return wrong;
}

/* Every chunk passes over all of dweight: few rows on a large head are one chunk, if memory allows. In f32 a small head's
 * logits cost at most 10 % of its gradients and 16 MB. */
static const char *chunks_of_a_cpu(struct op_run *run) {
    if (run->context->loss_workspace_bytes)
        return op_run_not_applicable(run, "chunks of a CPU: where there is a budget, others are right");
    if (chunk_advised(run, 256, 2048, 128256) != 256) return "256 x 2048 x 128256 passes over dweight more than once";
    if (run->types.t != LIGER_F32) return NULL;
    const int64_t gradients = (1024 + 32000) * 1024 * 4, chunk = chunk_advised(run, 1024, 1024, 32000);
    if (chunk * 32000 * 4 > gradients / 10 + (16 << 20)) return "1024 x 1024 x 32000 in f32 takes too much memory";
    return (1024 + chunk - 1) / chunk <= 5 ? NULL : "1024 x 1024 x 32000 in f32 has more than 5 chunks";
}

static const struct op_property forward_properties[] = {
    {"a target out of range", forward_target_out_of_range},
    {"chunks of any size", any_chunk},
    {"logits in dweight", in_dweight, .of_a_cpu = true},
    {"two passes with slices of any size", any_slice},
    {"the advised chunk", advised_chunk},
    {"the advised slice", advised_slice},
    {"chunks of a CPU", chunks_of_a_cpu, .of_a_cpu = true},
};
static const struct op_property backward_properties[] = {
    {"a target out of range", backward_target_out_of_range},
    {"chunks of any size", any_chunk},
    {"logits in dweight", in_dweight, .of_a_cpu = true},
    {"two passes with slices of any size", any_slice},
};

/* ---- bench ------------------------------------------------------------------------------------------------------ */

/* clang-format off */
static const struct op_case bench[] = {
    {"512x1024x32000",               {512, 1024, 32000, 256},        .flags = BARE | NO_DBIAS},
    {"1024x1024x32000",              {1024, 1024, 32000, 352},       .flags = BARE | NO_DBIAS},
    {"1024x1024x32000 loss",         {1024, 1024, 32000, 352},       .flags = BARE | LOSS_ONLY},
    {"8192x4096x32000",              {8192, 4096, 32000, 4096},      .flags = BARE | NO_DBIAS, .large = true, .dtypes = 1u << LIGER_BF16},
    {"8192x4096x128256",             {8192, 4096, 128256, 4096},     .flags = BARE | NO_DBIAS, .large = true, .dtypes = 1u << LIGER_BF16},
    {"1024x1024x32000 two passes",   {1024, 1024, 32000, 0, 4608},   .flags = BARE | NO_DBIAS},
    {"16384x2048x248320 two passes", {16384, 2048, 248320, 0, 9600}, .flags = BARE | NO_DBIAS, .large = true, .dtypes = 1u << LIGER_BF16},
};
/* clang-format on */

/* Three products; in two passes four. */
static double flops(const struct op_case *c) { return head_flops(c) * (c->size[SLICE] ? 4.0 / 3 : 1); }

#define INEXACT HEAD_INEXACT("cross_entropy")

const struct op_cases linear_cross_entropy_forward_cases = {
    .name = "linear_cross_entropy_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(forward_cases),
    .prepare = prepare,
    .call = call_linear_cross_entropy_forward,
    .workspace = workspace_linear_cross_entropy_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .no_loss = OP_IS_FORWARD,
    .no_range = {INEXACT, INEXACT, INEXACT},
    .no_aliases = OP_NO_ALIASES,
    .magnitudes = magnitudes,
    OP_PROVOCATIONS(shared_provocations),
    OP_MORE_PROVOCATIONS(forward_provocations),
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
    .flops = flops,
};

const struct op_cases linear_cross_entropy_backward_cases = {
    .name = "linear_cross_entropy_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(backward_cases),
    .prepare = prepare,
    .call = call_linear_cross_entropy_backward,
    .workspace = workspace_linear_cross_entropy_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .no_range = {INEXACT, INEXACT, INEXACT},
    .no_aliases = OP_NO_ALIASES,
    .magnitudes = magnitudes,
    .loss = loss_backward,
    OP_GRADIENTS(gradients),
    OP_PROVOCATIONS(shared_provocations),
    OP_PROPERTIES(backward_properties),
};
