/* linear_kl_div_cases.c - shapes, tolerances, properties and bench points of the divergence on a linear head.
 *
 * Logits are exact (linear_head_cases.h); only the GENERAL case, in f32, has logits with an error of its own. */
#include <math.h>
#include <stdlib.h>

#include "liger/ops/linear_kl_div/linear_kl_div.h"
#include "liger/ops/linear_kl_div/linear_kl_div_ref.h"
#include "tests/harness/linear_head_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { X, WEIGHT, TARGET, LABELS, LOGITS, LOSS, DX, DWEIGHT, TENSORS };
enum { ROWS, HIDDEN, VOCAB, CHUNK };
enum { TEMPERATURE, EPS };
enum {
    MEAN = 1,
    SUM = 2,
    LABELED = 4,
    IGNORED = 8, /* by every label */
    RAW = 16,
    NO_LOSS = 32,
    NO_DX = 64,
    NO_DWEIGHT = 128,
    GENERAL = 256,
    LOSS_ONLY = NO_DX | NO_DWEIGHT
};

static bool has(const struct op_case *c, uint32_t flag) { return (c->flags & flag) != 0; }

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t rows = c->size[ROWS], hidden = c->size[HIDDEN], vocab = c->size[VOCAB];
    struct tensor_spec unused = {.name = NULL};
    spec[X] = (struct tensor_spec){.name = "x", .kind = KIND_T, .ndim = 2, .shape = {rows, hidden}, .gaps = true};
    if (!has(c, GENERAL) && c->scalar[TEMPERATURE] == 1) spec[X].ranges = 1u << RANGE_OFFSET;
    spec[WEIGHT] =
        (struct tensor_spec){.name = "weight", .kind = KIND_T, .spread = .5, .ndim = 2, .shape = {vocab, hidden}};
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

static int32_t reduction_of(const struct op_case *c) {
    if (has(c, SUM)) return LIGER_LINEAR_KL_SUM;
    return has(c, MEAN) ? LIGER_LINEAR_KL_MEAN : LIGER_LINEAR_KL_BATCHMEAN;
}

static void options(const struct op_case *c, void *args) {
    liger_linear_kl_div_args *to = args;
    to->ignore_index = -100;
    to->temperature = (float)c->scalar[TEMPERATURE];
    to->eps = (float)c->scalar[EPS];
    to->reduction = reduction_of(c);
    to->raw_gradient = has(c, RAW);
}
OP_DOOR(linear_kl_div, options)
OP_DOOR_WORKSPACE(linear_kl_div)

static struct linear_kl_div_ref reference_of(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t elements = c->size[ROWS] * c->size[VOCAB];
    return (struct linear_kl_div_ref){
        .rows = c->size[ROWS],
        .hidden = c->size[HIDDEN],
        .vocab = c->size[VOCAB],
        .chunk = c->size[CHUNK],
        .ignore_index = -100,
        .dtype = types->t,
        .dweight_dtype = types->t == LIGER_DTYPE_NONE ? LIGER_DTYPE_NONE : types->weight,
        .temperature = (double)(float)c->scalar[TEMPERATURE],
        .eps = (double)(float)c->scalar[EPS],
        .reduction = reduction_of(c),
        .raw_gradient = has(c, RAW),
        .x = t[X],
        .weight = t[WEIGHT],
        .target = t[TARGET],
        .labels = t[LABELS],
        .logits = head_doubles(elements),
        .dlogits = head_doubles(elements),
    };
}
static void release(const struct linear_kl_div_ref *ref) {
    free(ref->logits);
    free(ref->dlogits);
}
static void evaluate(const struct op_case *c, const struct op_types *types, double *const *t,
                     void (*loops)(const struct linear_kl_div_ref *)) {
    struct linear_kl_div_ref ref = reference_of(c, types, t);
    ref.loss = t[LOSS], ref.dx = t[DX], ref.dweight = t[DWEIGHT];
    loops(&ref);
    release(&ref);
}
static void reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate(c, types, t, linear_kl_div_reference);
}
static void naive(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate(c, types, t, linear_kl_div_naive);
}

static double loss_of(const struct op_case *c, const struct op_types *types, double *const *t) {
    struct linear_kl_div_ref ref = reference_of(c, types, t);
    double loss = 0;
    ref.loss = &loss;
    if (ref.raw_gradient) ref.reduction = LIGER_LINEAR_KL_SUM;
    linear_kl_div_reference(&ref);
    release(&ref);
    return loss;
}

/* ---- budgets ---------------------------------------------------------------------------------------------------- */

/* Of a row: what the loss's terms come to, and what an element of the gradient is the difference of, at most. */
struct sizes {
    double loss, gradient;
};
static struct sizes sizes_of_row(const struct linear_kl_div_ref *ref, int64_t r) {
    const double *logits = ref->logits + r * ref->vocab, *q = ref->target + r * ref->vocab;
    double max = -INFINITY, sum = 0, mass = 0, terms = 0, most = 0;
    for (int64_t j = 0; j < ref->vocab; j++) max = fmax(max, logits[j] / ref->temperature);
    for (int64_t j = 0; j < ref->vocab; j++) sum += exp(logits[j] / ref->temperature - max), mass += q[j];
    for (int64_t j = 0; j < ref->vocab; j++) {
        const double z = logits[j] / ref->temperature, scaled = ref->temperature == 1 ? 0 : fabs(z) + fabs(max);
        if (q[j] != 0) terms += q[j] * (fabs(log(fmax(q[j], ref->eps))) + fabs(z - max) + scaled);
        most = fmax(most, exp(z - max) / sum * mass * (1 + scaled / 4) + q[j]);
    }
    return (struct sizes){terms + (1 + fabs(log(sum))) * mass, most};
}

static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    const int64_t elements = c->size[ROWS] * c->size[VOCAB];
    struct linear_kl_div_ref ref = reference_of(c, types, t);
    double *error = head_doubles(elements), loss = 0, gradient = 0;
    linear_kl_div_reference(&ref);
    const double weight = linear_kl_div_weight(&ref), by = (ref.raw_gradient ? 1 : weight) / fabs(ref.temperature);
    for (int64_t r = 0; r < c->size[ROWS]; r++) {
        if (t[LABELS] && t[LABELS][r] == -100) continue;
        const struct sizes row = sizes_of_row(&ref, r);
        loss += row.loss * weight, gradient = fmax(gradient, row.gradient * by);
    }
    op_raise(&magnitude[LOSS], loss);
    for (int64_t i = 0; i < elements; i++) error[i] = 16 * gradient;
    const struct head_budget budget = {
        .rows = c->size[ROWS],
        .hidden = c->size[HIDDEN],
        .vocab = c->size[VOCAB],
        .t = types->t,
        .x = t[X],
        .weight = t[WEIGHT],
        .dlogits = ref.dlogits,
        .error = error,
        .logits = has(c, GENERAL) ? 8.0 * (double)c->size[HIDDEN] : 0,
        .rounds = types->weight != LIGER_F32 && c->size[CHUNK] < c->size[ROWS],
    };
    double no_bias = 0;
    head_magnitudes(&budget, &magnitude[DX], &magnitude[DWEIGHT], &no_bias);
    free(error);
    release(&ref);
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

/* clang-format off */
#define CASE(text, rows, hidden, vocab, chunk, temperature, ...)                                                       \
    {.label = text, .size = {rows, hidden, vocab, chunk}, .scalar = {temperature, 1e-10}, __VA_ARGS__}
/* The first has every tensor. Chunks: of one row, prime, a divisor, all rows, more than all. */
static const struct op_case cases[] = {
    CASE("all",                            7,  9,   33,  3, 1,   .flags = LABELED),
    CASE("1x1x1",                          1,  1,    1,  1, 1),
    CASE("5x3x2, chunk 1",                 5,  3,    2,  1, 1,   .flags = SUM),
    CASE("6x8x16, chunk 2",                6,  8,   16,  2, 2,   .flags = MEAN | LABELED),
    CASE("7x17x15, chunk 5",               7, 17,   15,  5, .7,  .flags = MEAN),
    CASE("12x16x64, one chunk",           12, 16,   64, 12, 1,   .flags = LABELED),
    CASE("11x31x67, buffer too large",    11, 31,   67, 16, 4,   .flags = SUM | LABELED),
    CASE("9x12x35, negative temperature",  9, 12,   35,  4, -3,  .flags = LABELED),
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
    {"no vocabulary", OP_SHAPE(WEIGHT, 0, 0), LIGER_ERR_SHAPE, {"weight is 0 x 9", "shard"}},
    {"logits absent", OP_ABSENT(LOGITS), LIGER_ERR_ARGUMENT, {"logits is required"}},
    {"logits without rows", OP_SHAPE(LOGITS, 0, 0), LIGER_ERR_SHAPE, {"logits", "1 or more", "0 rows"}},
    {"x rows overlap", OP_STRIDE(X, 0, 8), LIGER_ERR_LAYOUT, {"x: rows overlap", "8", "9"}},
    {"temperature of 0", OP_SCALAR(TEMPERATURE, 0), LIGER_ERR_ARGUMENT, {"temperature is 0", "divided"}},
    {"temperature without an inverse", OP_SCALAR(TEMPERATURE, 1e-39), LIGER_ERR_ARGUMENT, {"temperature is 1e-39"}},
};

/* Chunks of any size give what the whole gives, within the same budget. */
static const char *any_chunk(struct op_run *run) {
    const int64_t rows = run->c.size[ROWS], chunks[] = {1, 2, rows / 2 + 1, rows, rows + 3};
    return op_run_any_size(run, CHUNK, chunks, OP_COUNT(chunks));
}

/* Labels are no indices: what they say is whether they are ignore_index. */
static const char *any_label(struct op_run *run) {
    if (!run->t[LABELS]) return op_run_not_applicable(run, "labels of any value: the case has none");
    for (int64_t r = 0; r < run->c.size[ROWS]; r++)
        if (run->t[LABELS][r] != -100) run->t[LABELS][r] = r % 2 ? -7 : (double)(1 << 30);
    if (op_run_call(run) != LIGER_OK) return "labels that are no indices are refused";
    const double loss = run->t[LOSS] ? *run->t[LOSS] : 0;
    for (int64_t r = 0; r < run->c.size[ROWS]; r++)
        if (run->t[LABELS][r] != -100) run->t[LABELS][r] = 1;
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    return run->t[LOSS] && *run->t[LOSS] != loss ? "a label that is no index changes the loss" : NULL;
}

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

static const struct op_property properties[] = {
    {"chunks of any size", any_chunk},
    {"labels are no indices", any_label},
    {"not negative", not_negative},
};

/* Three products. */
static double flops(const struct op_case *c) {
    return 6.0 * (double)c->size[ROWS] * (double)c->size[HIDDEN] * (double)c->size[VOCAB];
}

#define INEXACT "linear loss: only sums of multiples of 1/16 are exact logits; gemm and softmax have this range"

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
    .flops = flops,
};
