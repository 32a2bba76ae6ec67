/* linear_jsd_cases.c - shapes, tolerances, properties and bench points of the Jensen-Shannon divergence on two linear heads. */
#define REAL double /* of row_softmax.h */
#include <math.h>
#include <stdlib.h>

#include "liger/core/context_state.h"
#include "liger/core/mixture.h"
#include "liger/ops/linear_jsd/linear_jsd.h"
#include "liger/ops/linear_jsd/linear_jsd_ref.h"
#include "tests/harness/distillation_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/row_softmax.h"

enum { X, WEIGHT, TEACHER_X, TEACHER_WEIGHT, LABELS, DLOGITS, LOSS, DX, DWEIGHT, TENSORS };
enum { TEACHER_HIDDEN = OWN_SIZES };
enum { BETA, TEMPERATURE };
enum { SAME = OWN_FLAGS }; /* the teacher is the student */

static const struct distillation_places at = {
    .head = {.bias = HEAD_NONE, .dx = DX, .dweight = DWEIGHT, .dbias = HEAD_NONE},
    .labels = LABELS,
    .loss = LOSS,
    .temperature = TEMPERATURE,
};

static bool loss_only(const struct op_case *c) { return (c->flags & LOSS_ONLY) == LOSS_ONLY; }

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static struct tensor_spec operand(const char *name, enum tensor_kind kind, int64_t rows, int64_t cols, double spread) {
    return (struct tensor_spec){.name = name, .kind = kind, .spread = spread, .ndim = 2, .shape = {rows, cols}};
}

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t rows = c->size[ROWS], hidden = c->size[HIDDEN], vocab = c->size[VOCAB];
    struct tensor_spec unused = {.name = NULL};
    spec[X] = operand("x", KIND_T, rows, hidden, 1);
    spec[TEACHER_X] = operand("teacher_x", KIND_WEIGHT, rows, c->size[TEACHER_HIDDEN], 1);
    spec[X].gaps = spec[TEACHER_X].gaps = true;
    spec[WEIGHT] = operand("weight", KIND_T, vocab, hidden, .5);
    spec[TEACHER_WEIGHT] = operand("teacher_weight", KIND_WEIGHT, vocab, c->size[TEACHER_HIDDEN], .5);
    spec[LABELS] = head_labels(rows, has(c, IGNORED), !has(c, LABELED | IGNORED));
    spec[DLOGITS] = head_chunk("dlogits", c->size[CHUNK], vocab);
    spec[DLOGITS].absent = loss_only(c);
    const int64_t longest = hidden > c->size[TEACHER_HIDDEN] ? hidden : c->size[TEACHER_HIDDEN];
    spec[LOSS] = head_divergence(has(c, GENERAL) ? longest : 0, has(c, NO_LOSS));
    head_describe_gradients(rows, hidden, vocab, &spec[DX], &spec[DWEIGHT], &unused);
    spec[DX].absent = has(c, NO_DX), spec[DWEIGHT].absent = has(c, NO_DWEIGHT);
}

static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t vocab = c->size[VOCAB];
    (void)types;
    for (int64_t i = 0; has(c, SAME) && i < c->size[ROWS] * c->size[HIDDEN]; i++) t[TEACHER_X][i] = t[X][i];
    for (int64_t i = 0; has(c, SAME) && i < vocab * c->size[HIDDEN]; i++) t[TEACHER_WEIGHT][i] = t[WEIGHT][i];
    if (has(c, GENERAL)) return;
    head_coarsen(t[X], c->size[ROWS] * c->size[HIDDEN]);
    head_coarsen(t[WEIGHT], vocab * c->size[HIDDEN]);
    head_coarsen(t[TEACHER_X], c->size[ROWS] * c->size[TEACHER_HIDDEN]);
    head_coarsen(t[TEACHER_WEIGHT], vocab * c->size[TEACHER_HIDDEN]);
}

/* ---- calls and reference ------------------------------------------------------------------------------------------ */

static void options(const struct op_case *c, void *args) {
    liger_linear_jsd_args *to = args;
    to->ignore_index = -100;
    to->beta = c->scalar[BETA];
    to->temperature = (float)c->scalar[TEMPERATURE];
    to->raw_gradient = has(c, RAW);
}
OP_DOOR(linear_jsd, options)
OP_DOOR_WORKSPACE(linear_jsd)

static struct linear_jsd_ref reference_of(const struct op_case *c, const struct op_types *types, double *const *t) {
    return (struct linear_jsd_ref){
        .of = distillation_of(c, types, t, &at),
        .beta = c->scalar[BETA],
        .teacher_hidden = c->size[TEACHER_HIDDEN],
        .teacher_x = t[TEACHER_X],
        .teacher_weight = t[TEACHER_WEIGHT],
        .teacher_logits = head_doubles(c->size[ROWS] * c->size[VOCAB]),
    };
}
static void release(const struct linear_jsd_ref *ref) {
    head_release(&ref->of.head);
    free(ref->teacher_logits);
}
DISTILLATION_EVALUATED(linear_jsd)

/* ---- budgets ---------------------------------------------------------------------------------------------------- */

/* log softmax of a row, and what it is the difference of. */
static double log_softmax(const double *logits, int64_t vocab, double temperature, double *values) {
    const struct row_softmax row = row_softmax(logits, vocab, temperature);
    for (int64_t j = 0; j < vocab; j++) values[j] = logits[j] / temperature - row.max - log(row.sum);
    return temperature == 1 ? 0 : 2 * fabs(row.max); /* a product with 1/temperature is rounded */
}

/* A logarithm of a probability errs by u of itself, times the probabilities; in a skew mixture times the smaller weight. */
static struct row_sizes sizes_of_row(const void *room, int64_t r) {
    const struct linear_jsd_ref *ref = room;
    const int64_t vocab = ref->of.head.vocab;
    const double temperature = ref->of.temperature;
    double *a = head_doubles(vocab), *b = head_doubles(vocab), loss = 0, most = 0, sum = 0;
    const double more = log_softmax(ref->of.head.logits + r * vocab, vocab, temperature, a) +
                        log_softmax(ref->teacher_logits + r * vocab, vocab, temperature, b);
    for (int64_t j = 0; j < vocab; j++) sum += (exp(a[j]) + exp(b[j])) * (1 + fabs(a[j]) + fabs(b[j]) + more);
    for (int64_t j = 0; j < vocab; j++) {
        loss += (exp(a[j]) + exp(b[j])) * (1 + fabs(a[j]) + fabs(b[j]) + more);
        most = fmax(most, (exp(a[j]) + exp(b[j])) * (1 + fabs(a[j]) + fabs(b[j]) + more) + exp(a[j]) * sum);
    }
    free(a);
    free(b);
    const double smaller = fmin(ref->beta, 1 - ref->beta);
    const double weight = smaller > 0 && smaller < MIXTURE_SKEW ? smaller : 1;
    return (struct row_sizes){loss * weight, most * weight};
}

static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    const struct linear_jsd_ref ref = reference_of(c, types, t);
    const double inexact = has(c, GENERAL) ? 8.0 * (double)(c->size[HIDDEN] + c->size[TEACHER_HIDDEN]) : 0;
    linear_jsd_reference(&ref);
    distillation_magnitudes(&ref.of, &ref, sizes_of_row, (struct distillation_errors){.units = 16 + inexact}, &at,
                            magnitude);
    release(&ref);
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

/* clang-format off */
#define CASE(text, rows, hidden, teacher, vocab, chunk, beta, temperature, ...)                                        \
    {.label = text, .size = {rows, hidden, vocab, chunk, teacher}, .scalar = {beta, temperature}, __VA_ARGS__}
/* One with logits far apart: a temperature below 1. */
#define SKEW(text, beta)                                                                                               \
    CASE("7x17x35 beta " text,             7, 17, 17,   35,  7, beta, 1),                                              \
    CASE("7x17x40, cold, beta " text,      7, 17, 17,   40,  3, beta, .2, .flags = LABELED)
/* The first has every tensor. Chunks: of one row, prime, a divisor, all rows, more than all. */
static const struct op_case cases[] = {
    CASE("all",                            7,  9, 11,   33,  3, .5, 1,   .flags = LABELED),
    CASE("1x1x1",                          1,  1,  1,    1,  1, .5, 1),
    CASE("5x3x2, chunk 1",                 5,  3,  8,    2,  1, 0,  1),
    CASE("6x8x16, chunk 2",                6,  8,  3,   16,  2, 1,  2,   .flags = LABELED),
    CASE("7x17x15, chunk 5",               7, 17, 17,   15,  5, .3, .7),
    CASE("12x16x64, one chunk",           12, 16, 24,   64, 12, 0,  1,   .flags = LABELED),
    CASE("12x16x64, to the student",      12, 16, 24,   64, 12, 1,  1),
    CASE("11x31x67, buffer too large",    11, 31,  9,   67, 16, .9, 4,   .flags = LABELED),
    CASE("9x12x35, negative temperature",  9, 12, 12,   35,  4, .5, -3,  .flags = LABELED),
    CASE("9x12x40, negative temperature",  9, 12, 12,   40,  4, .5, -3,  .flags = LABELED),
    CASE("13x20x41 raw",                  13, 20, 10,   41,  4, .5, 2,   .flags = RAW | LABELED),
    CASE("9x12x40 no dx",                  9, 12, 16,   40,  4, .5, 1,   .flags = NO_DX | LABELED),
    CASE("9x12x40 no dweight",             9, 12, 16,   40,  4, .1, 1,   .flags = NO_DWEIGHT | LABELED),
    CASE("9x12x35 no loss",                9, 12, 16,   35,  4, .5, 1,   .flags = NO_LOSS | LABELED),
    CASE("9x12x35 loss only",              9, 12, 16,   35,  4, .5, 1,   .flags = LOSS_ONLY),
    CASE("9x12x40 loss only, labels",      9, 12, 16,   40,  4, 0,  2,   .flags = LOSS_ONLY | LABELED),
    CASE("19x12x40 teacher of itself",    19, 12, 12,   40,  7, .5, 1,   .flags = SAME),
    SKEW("1e-3", 1e-3), SKEW("1 - 1e-3", 1 - 1e-3),
    SKEW("1e-4", 1e-4), SKEW("1 - 1e-4", 1 - 1e-4),
    SKEW("1e-6", 1e-6), SKEW("1 - 1e-6", 1 - 1e-6),
    SKEW("1e-12", 1e-12), SKEW("1 - 1e-12", 1 - 1e-12),
    CASE("9x12x40 skew, teacher of itself", 9, 12, 12,   40,  9, 1e-6, 1, .flags = SAME),
    CASE("23x45x131 general",             23, 45, 30,  131,  8, .5, 1,   .flags = GENERAL, .dtypes = 1u << LIGER_F32),
    CASE("150x33x1032",                  150, 33, 20, 1032, 64, .5, 1,   .flags = LABELED, .large = true),
    CASE("60x33x2051",                    60, 33, 40, 2051, 64, .5, 1,   .flags = LABELED, .large = true),
    CASE("150x5x32000",                  150, 5, 6, 32000, 150, .5, 1,   .flags = LABELED, .large = true),
    /* Many rows, but not `large`: a large case has no properties, and tiles of several sizes are seen by one alone. */
    CASE("2100x4x24, tiles of all sizes", 2100, 4,  5,   24, 2100, .5, 1, .flags = LABELED),
    CASE("2100x4x27, two chunks",         2100, 4,  5,   27, 1500, .1, 1),
    CASE("no rows",                        0,  9, 11,   33,  3, .5, 1,   .flags = LABELED, .edge = true),
    CASE("no rows, no buffer",             0,  9, 11,   33,  0, .5, 1,   .edge = true),
    CASE("all ignored",                    5,  9, 11,   33,  2, .5, 1,   .flags = IGNORED, .edge = true),
    CASE("all ignored, raw",               5,  9, 11,   40,  2, 1,  2,   .flags = IGNORED | RAW, .edge = true),
};
static const struct op_case bench[] = {
    CASE("1024x512x1024x32000", 1024, 512, 1024, 32000, 352, .5, 1),
    CASE("4096x1024x2048x128256", 4096, 1024, 2048, 128256, 4096, .5, 1, .large = true, .dtypes = 1u << LIGER_BF16),
};
/* clang-format on */

static const struct op_gradient gradients[] = {{DX, X}, {DWEIGHT, WEIGHT}};

static const struct op_provocation provocations[] = {
    HEAD_PROVOCATIONS(DLOGITS, "dlogits"),
    TEMPERATURE_PROVOCATIONS(TEMPERATURE),
};

static const char *any_chunk(struct op_run *run) {
    if (loss_only(&run->c)) return op_run_not_applicable(run, "chunks of any size: the case has none");
    return head_any_chunk(run);
}

/* What the whole gives, tiles of the fewest rows give too. */
static const char *small_tiles(struct op_run *run) {
    const int64_t named = run->context->loss_workspace_bytes, all[] = {run->c.size[ROWS]};
    if (run->c.size[ROWS] <= 16) return op_run_not_applicable(run, "small tiles: one holds all rows");
    run->context->loss_workspace_bytes = 1;
    const char *wrong = op_run_any_size(run, CHUNK, all, 1);
    run->context->loss_workspace_bytes = named;
    return wrong;
}

static const char *any_label(struct op_run *run) {
    if (!run->t[LOSS]) return op_run_not_applicable(run, "labels of any value: the case has none");
    return distillation_any_label(run, &at);
}

/* With beta 1/2 teacher and student may change places; a divergence is not negative, and at most log 2. */
static const char *symmetric(struct op_run *run) {
    const int64_t rows = run->c.size[ROWS], hidden = run->c.size[HIDDEN], vocab = run->c.size[VOCAB];
    const bool alike = run->c.size[TEACHER_HIDDEN] == hidden && run->types.weight == run->types.t;
    if (!alike || run->c.scalar[BETA] != .5 || !run->t[LOSS])
        return op_run_not_applicable(run, "symmetric: student and teacher are not alike");
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    const double loss = *run->t[LOSS];
    double *const pairs[][2] = {{run->t[X], run->t[TEACHER_X]}, {run->t[WEIGHT], run->t[TEACHER_WEIGHT]}};
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < (k ? vocab : rows) * hidden; i++) {
            const double one = pairs[k][0][i];
            pairs[k][0][i] = pairs[k][1][i], pairs[k][1][i] = one;
        }
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    const double other = *run->t[LOSS];
    if (!(loss >= -1e-5 && loss <= 0.6932)) return op_run_text(run, "the loss is %g", loss);
    return fabs(loss - other) <= 1e-5 ? NULL : op_run_text(run, "%g one way, %g the other", loss, other);
}

static const struct op_property properties[] = {
    {"chunks of any size", any_chunk},
    {"small tiles", small_tiles},
    {"labels are no indices", any_label},
    {"symmetric", symmetric},
};

/* Three products of the student, one of the teacher. */
static double flops(const struct op_case *c) {
    return 2.0 * (double)c->size[ROWS] * (double)c->size[VOCAB] *
           (double)(3 * c->size[HIDDEN] + c->size[TEACHER_HIDDEN]);
}

#define OFFSET                                                                                                         \
    "linear jsd: an offset of x moves logits by as much as rows of the weight differ, out of what probabilities are "  \
    "of"

#define INEXACT HEAD_INEXACT("softmax")

const struct op_cases linear_jsd_cases = {
    .name = "linear_jsd",
    .tensor_count = TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_linear_jsd,
    .workspace = workspace_linear_jsd,
    .reference = reference,
    .naive = naive,
    .loss = loss_of,
    OP_GRADIENTS(gradients),
    .no_range = {INEXACT, INEXACT, INEXACT, OFFSET},
    .no_aliases = OP_NO_ALIASES,
    .magnitudes = magnitudes,
    OP_PROVOCATIONS(provocations),
    OP_PROPERTIES(properties),
    OP_BENCH(bench),
    .flops = flops,
};
