/* linear_kl_div_cases.c - shapes, tolerances, properties and bench points of the divergence on a linear head. */
#define REAL double /* of row_softmax.h */
#include <math.h>

#include "liger/ops/linear_kl_div/linear_kl_div.h"
#include "liger/ops/linear_kl_div/linear_kl_div_ref.h"
#include "tests/harness/distillation_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/row_softmax.h"

enum { X, WEIGHT, TARGET, LABELS, LOGITS, LOSS, DX, DWEIGHT, TENSORS };
enum { TEMPERATURE, EPS };

static const struct distillation_places at = {
    .head = {.bias = HEAD_NONE, .dx = DX, .dweight = DWEIGHT, .dbias = HEAD_NONE},
    .labels = LABELS,
    .loss = LOSS,
    .temperature = TEMPERATURE,
};

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t rows = c->size[ROWS], hidden = c->size[HIDDEN], vocab = c->size[VOCAB];
    struct tensor_spec unused = {.name = NULL};
    head_describe_operands(rows, hidden, vocab, &spec[X], &spec[WEIGHT], &unused);
    if (!has(c, GENERAL) && c->scalar[TEMPERATURE] == 1) spec[X].ranges = 1u << RANGE_OFFSET;
    spec[TARGET] = (struct tensor_spec){.name = "target",
                                        .kind = KIND_WEIGHT,
                                        .values = VALUES_POSITIVE,
                                        .ndim = 2,
                                        .shape = {rows, vocab},
                                        .gaps = true};
    spec[LABELS] = head_labels(rows, has(c, IGNORED), !has(c, LABELED | IGNORED));
    spec[LOGITS] = head_chunk("logits", c->size[CHUNK], vocab);
    spec[LOSS] = head_divergence(has(c, GENERAL) ? hidden : 0, has(c, NO_LOSS));
    head_describe_gradients(rows, hidden, vocab, &spec[DX], &spec[DWEIGHT], &unused);
    spec[DX].absent = has(c, NO_DX), spec[DWEIGHT].absent = has(c, NO_DWEIGHT);
}

/* A row of the target adds up to about 1, one value of five is 0, and the first row is certain. */
static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t vocab = c->size[VOCAB];
    (void)types;
    for (int64_t i = 0; i < c->size[ROWS] * vocab; i++) {
        t[TARGET][i] = i % 5 == 3 ? 0 : t[TARGET][i] * t[TARGET][i] / (double)vocab;
        if (i < vocab) t[TARGET][i] = i == vocab / 2;
    }
    if (has(c, GENERAL)) return;
    head_coarsen(t[X], c->size[ROWS] * c->size[HIDDEN]);
    head_coarsen(t[WEIGHT], vocab * c->size[HIDDEN]);
}

/* ---- calls and reference ------------------------------------------------------------------------------------------ */

static void options(const struct op_case *c, void *args) {
    liger_linear_kl_div_args *to = args;
    to->ignore_index = -100;
    to->temperature = (float)c->scalar[TEMPERATURE];
    to->eps = (float)c->scalar[EPS];
    to->reduction = (int32_t)(c->flags & REDUCTION);
    to->raw_gradient = has(c, RAW);
}
OP_DOOR(linear_kl_div, options)
OP_DOOR_WORKSPACE(linear_kl_div)

static struct linear_kl_div_ref reference_of(const struct op_case *c, const struct op_types *types, double *const *t) {
    return (struct linear_kl_div_ref){
        .of = distillation_of(c, types, t, &at),
        .eps = op_round(LIGER_F32, c->scalar[EPS]),
        .target = t[TARGET],
    };
}
static void release(const struct linear_kl_div_ref *ref) { head_release(&ref->of.head); }
DISTILLATION_EVALUATED(linear_kl_div)

/* ---- budgets ---------------------------------------------------------------------------------------------------- */

static struct row_sizes sizes_of_row(const void *room, int64_t r) {
    const struct linear_kl_div_ref *ref = room;
    const int64_t vocab = ref->of.head.vocab;
    const double *logits = ref->of.head.logits + r * vocab, *q = ref->target + r * vocab;
    const double temperature = ref->of.temperature;
    const struct row_softmax row = row_softmax(logits, vocab, temperature);
    double mass = 0, terms = 0, most = 0;
    for (int64_t j = 0; j < vocab; j++) mass += q[j];
    for (int64_t j = 0; j < vocab; j++) {
        const double z = logits[j] / temperature, scaled = temperature == 1 ? 0 : fabs(z) + fabs(row.max);
        if (q[j] != 0) terms += q[j] * (fabs(log(fmax(q[j], ref->eps))) + fabs(z - row.max) + scaled);
        most = fmax(most, exp(z - row.max) / row.sum * mass * (1 + scaled / 4) + q[j]);
    }
    return (struct row_sizes){terms + (1 + fabs(log(row.sum))) * mass, most};
}

static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    const struct linear_kl_div_ref ref = reference_of(c, types, t);
    const struct distillation_errors errors = {16, has(c, GENERAL) ? 8.0 * (double)c->size[HIDDEN] : 0};
    linear_kl_div_reference(&ref);
    distillation_magnitudes(&ref.of, &ref, sizes_of_row, errors, &at, magnitude);
    release(&ref);
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

/* clang-format off */
#define CASE(text, rows, hidden, vocab, chunk, temperature, ...)                                                       \
    {.label = text, .size = {rows, hidden, vocab, chunk}, .scalar = {temperature, 1e-10}, __VA_ARGS__}
/* The first has every tensor. Chunks: of one row, prime, a divisor, all rows, more than all. */
static const struct op_case cases[] = {
    CASE("all",                           11,  9,   33,  3, 1,   .flags = LABELED),
    CASE("1x1x1",                          1,  1,    1,  1, 1),
    CASE("5x3x2, chunk 1",                 5,  3,    2,  1, 1,   .flags = SUM),
    CASE("6x8x16, chunk 2",                6,  8,   16,  2, 2,   .flags = MEAN | LABELED),
    CASE("7x17x15, chunk 5",               7, 17,   15,  5, .7,  .flags = MEAN),
    CASE("12x16x64, one chunk",           12, 16,   64, 12, 1,   .flags = LABELED),
    CASE("11x31x67, buffer too large",    11, 31,   67, 16, 4,   .flags = SUM | LABELED),
    CASE("9x12x35, negative temperature",  9, 12,   35,  4, -3,  .flags = LABELED),
    CASE("9x12x40, negative temperature",  9, 12,   40,  4, -3,  .flags = LABELED),
    CASE("13x20x41 raw",                  13, 20,   41,  4, 2,   .flags = RAW | LABELED),
    CASE("13x20x41 raw mean",             13, 20,   41,  7, 1,   .flags = RAW | MEAN),
    CASE("9x12x40 no dx",                  9, 12,   40,  4, 1,   .flags = NO_DX | LABELED),
    CASE("9x12x40 no dweight",             9, 12,   40,  4, 1,   .flags = NO_DWEIGHT | LABELED),
    CASE("9x12x35 no loss",                9, 12,   35,  4, 1,   .flags = NO_LOSS | LABELED),
    CASE("9x12x35 loss only",              9, 12,   35,  4, 1,   .flags = LOSS_ONLY | SUM),
    CASE("9x12x40 loss only, labels",      9, 12,   40,  4, 2,   .flags = LOSS_ONLY | LABELED),
    CASE("23x45x131 general",             23, 45,  131,  8, 1,   .flags = GENERAL, .dtypes = 1u << LIGER_F32),
    CASE("150x33x1032",                  150, 33, 1032, 64, 1,   .flags = SUM | LABELED, .large = true),
    CASE("60x33x2051",                    60, 33, 2051, 64, 1,   .flags = LABELED, .large = true),
    CASE("150x5x32000",                  150, 5, 32000, 150, 1,  .flags = LABELED, .large = true),
    CASE("no rows",                        0,  9,   33,  3, 1,   .flags = LABELED, .edge = true),
    CASE("no rows, no buffer",             0,  9,   33,  0, 1,   .flags = SUM, .edge = true),
    CASE("all ignored",                    5,  9,   33,  2, 1,   .flags = IGNORED, .edge = true),
    CASE("all ignored, raw mean",          5,  9,   40,  2, 2,   .flags = IGNORED | RAW | MEAN, .edge = true),
};
static const struct op_case bench[] = {
    CASE("1024x1024x32000", 1024, 1024, 32000, 352, 1),
    CASE("4096x4096x128256", 4096, 4096, 128256, 4096, 1, .large = true, .dtypes = 1u << LIGER_BF16),
};
/* clang-format on */

static const struct op_gradient gradients[] = {{DX, X}, {DWEIGHT, WEIGHT}};

static const struct op_provocation provocations[] = {
    HEAD_PROVOCATIONS(LOGITS, "logits"),
    HEAD_ROWS_OVERLAP,
    TEMPERATURE_PROVOCATIONS(TEMPERATURE),
};

static const char *any_label(struct op_run *run) { return distillation_any_label(run, &at); }

/* A divergence of probabilities is not negative. */
static const char *not_negative(struct op_run *run) {
    if (!run->t[LOSS]) return op_run_not_applicable(run, "not negative: the case has no loss");
    const int64_t vocab = run->c.size[VOCAB];
    for (int64_t r = 0; r < run->c.size[ROWS]; r++)
        for (int64_t j = 0; j < vocab; j++) run->t[TARGET][r * vocab + j] = j == r % vocab ? 0.5 : j == 0 ? 0.5 : 0;
    for (int64_t r = 0; r < run->c.size[ROWS]; r++)
        if (r % vocab == 0) run->t[TARGET][r * vocab] = 1;
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    return *run->t[LOSS] >= -1e-4 ? NULL : op_run_text(run, "the loss is %g", *run->t[LOSS]);
}

static const char *in_dweight(struct op_run *run) { return head_in_dweight(run, DWEIGHT); }

static const struct op_property properties[] = {
    {"chunks of any size", head_any_chunk},
    {"logits in dweight", in_dweight, .of_a_cpu = true},
    {"labels are no indices", any_label},
    {"not negative", not_negative},
};

#define INEXACT HEAD_INEXACT("softmax")

const struct op_cases linear_kl_div_cases = {
    .name = "linear_kl_div",
    .tensor_count = TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_linear_kl_div,
    .workspace = workspace_linear_kl_div,
    .reference = reference,
    .naive = naive,
    .loss = loss_of,
    OP_GRADIENTS(gradients),
    .no_range = {INEXACT, INEXACT, INEXACT},
    .no_aliases = OP_NO_ALIASES,
    .magnitudes = magnitudes,
    OP_PROVOCATIONS(provocations),
    OP_PROPERTIES(properties),
    OP_BENCH(bench),
    .flops = head_flops,
};
