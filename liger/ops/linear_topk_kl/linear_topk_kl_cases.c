/* linear_topk_kl_cases.c - shapes, tolerances, properties and bench points of the divergence from listed probabilities. */
#define REAL double /* of row_softmax.h */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "liger/ops/linear_topk_kl/linear_topk_kl.h"
#include "liger/ops/linear_topk_kl/linear_topk_kl_ref.h"
#include "tests/harness/distillation_cases.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/op_door.h"
#include "tests/harness/row_softmax.h"

enum { X, WEIGHT, BIAS, IDS, LOGPROBS, LABELS, LOGITS, LOSS, DX, DWEIGHT, DBIAS, TENSORS };
enum { K = OWN_SIZES };
enum { TEMPERATURE };
enum {
    BIASED = OWN_FLAGS,
    HOLES = 2 * OWN_FLAGS,          /* every third place of a list is empty */
    OUTSIDE_MASKED = 4 * OWN_FLAGS, /* what is not listed has a bias of -inf */
    FAR = 8 * OWN_FLAGS             /* what is not listed is some e^-60 */
};

static const struct distillation_places at = {
    .head = {.bias = BIAS, .dx = DX, .dweight = DWEIGHT, .dbias = DBIAS},
    .labels = LABELS,
    .loss = LOSS,
    .temperature = TEMPERATURE,
};

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static void describe_operands(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t rows = c->size[ROWS], hidden = c->size[HIDDEN], vocab = c->size[VOCAB], k = c->size[K];
    head_describe_operands(rows, hidden, vocab, &spec[X], &spec[WEIGHT], &spec[BIAS]);
    if (!has(c, GENERAL | FAR) && c->scalar[TEMPERATURE] == 1) spec[X].ranges = 1u << RANGE_OFFSET;
    spec[BIAS].absent = !has(c, BIASED | OUTSIDE_MASKED | FAR);
    spec[IDS] = (struct tensor_spec){.name = "ids",
                                     .kind = KIND_INDEX,
                                     .values = VALUES_TARGET,
                                     .spread = (double)vocab,
                                     .ndim = 2,
                                     .shape = {rows, k},
                                     .gaps = true};
    spec[LOGPROBS] = (struct tensor_spec){.name = "logprobs",
                                          .kind = KIND_WEIGHT,
                                          .values = VALUES_POSITIVE,
                                          .ndim = 2,
                                          .shape = {rows, k},
                                          .gaps = true};
    spec[LABELS] = head_labels(rows, has(c, IGNORED), !has(c, LABELED | IGNORED));
    spec[LOGITS] = head_chunk("logits", c->size[CHUNK], vocab);
}

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    describe_operands(c, spec);
    spec[LOSS] = head_divergence(has(c, GENERAL) ? c->size[HIDDEN] : 0, has(c, NO_LOSS));
    head_describe_gradients(c->size[ROWS], c->size[HIDDEN], c->size[VOCAB], &spec[DX], &spec[DWEIGHT], &spec[DBIAS]);
    spec[DX].absent = has(c, NO_DX), spec[DWEIGHT].absent = has(c, NO_DWEIGHT), spec[DBIAS].absent = has(c, NO_DBIAS);
}

static int64_t without_common_factor(int64_t step, int64_t vocab) {
    for (;; step++) {
        int64_t a = step, b = vocab;
        while (b) {
            const int64_t rest = a % b;
            a = b, b = rest;
        }
        if (a == 1) return step;
    }
}

static bool is_hole(const struct op_case *c, int64_t i) { return has(c, HOLES) && i % 3 == 2; }
/* Is there an id that is not listed, of any probability? */
static bool has_rest(const struct op_case *c) {
    return !has(c, OUTSIDE_MASKED) && (c->size[K] < c->size[VOCAB] || has(c, HOLES));
}

/* Rows in turn: a rest of .1; a teacher who is nearly sure; none, but for roundings; half of the ids have a q of 0. Where nothing is
 * outside no row has a rest. The drawn values are weights. */
static void prepare_row(const struct op_case *c, int64_t r, double *ids, double *logprobs) {
    const int64_t k = c->size[K], vocab = c->size[VOCAB], step = without_common_factor(1 + r % vocab, vocab);
    const int64_t first = has(c, OUTSIDE_MASKED | FAR) ? 0 : r;
    const double mass = !has_rest(c) ? 1 : (const double[]){.9, 1 - 0x1p-12, 1, .5}[r % 4];
    double sum = 0;
    for (int64_t i = 0; i < k; i++) {
        ids[i] = is_hole(c, i) ? -1 : (double)((first + i * (has(c, OUTSIDE_MASKED | FAR) ? 1 : step)) % vocab);
        if (r % 4 == 1) logprobs[i] *= i == 0 ? 1 : 0x1p-20;
        if (is_hole(c, i) || (r % 4 == 3 && i % 2 == 1)) logprobs[i] = 0;
        sum += logprobs[i];
    }
    for (int64_t i = 0; i < k; i++) logprobs[i] = log(logprobs[i] * mass / sum);
}

static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t k = c->size[K], vocab = c->size[VOCAB];
    (void)types;
    for (int64_t r = 0; r < c->size[ROWS]; r++) prepare_row(c, r, t[IDS] + r * k, t[LOGPROBS] + r * k);
    if (has(c, GENERAL)) return;
    head_coarsen(t[X], c->size[ROWS] * c->size[HIDDEN]);
    head_coarsen(t[WEIGHT], vocab * c->size[HIDDEN]);
    head_coarsen(t[BIAS], vocab);
    if (has(c, OUTSIDE_MASKED | FAR))
        for (int64_t j = k; j < vocab; j++) t[BIAS][j] = has(c, FAR) ? t[BIAS][j] - 60 : -INFINITY;
}

/* ---- calls and reference ------------------------------------------------------------------------------------------ */

static void options(const struct op_case *c, void *args) {
    liger_linear_topk_kl_args *to = args;
    to->ignore_index = -100;
    to->temperature = (float)c->scalar[TEMPERATURE];
    to->reduction = (int32_t)(c->flags & REDUCTION);
    to->raw_gradient = has(c, RAW);
}
OP_DOOR(linear_topk_kl, options)
OP_DOOR_WORKSPACE(linear_topk_kl)

static struct linear_topk_kl_ref reference_of(const struct op_case *c, const struct op_types *types, double *const *t) {
    return (struct linear_topk_kl_ref){
        .of = distillation_of(c, types, t, &at),
        .k = c->size[K],
        .logprob_unit = format_unit(types->t == LIGER_DTYPE_NONE ? LIGER_F32 : types->weight),
        .ids = t[IDS],
        .logprobs = t[LOGPROBS],
    };
}
static void release(const struct linear_topk_kl_ref *ref) { head_release(&ref->of.head); }
DISTILLATION_EVALUATED(linear_topk_kl)

/* ---- budgets ---------------------------------------------------------------------------------------------------- */

/* Of a row's ids that are not listed; of none the largest is -inf. */
static struct row_softmax softmax_outside(const struct linear_topk_kl_ref *ref, int64_t r) {
    const int64_t vocab = ref->of.head.vocab;
    double *outside = head_doubles(vocab);
    for (int64_t j = 0; j < vocab; j++) outside[j] = ref->of.head.logits[r * vocab + j];
    for (int64_t i = r * ref->k; i < (r + 1) * ref->k; i++)
        if (ref->ids[i] >= 0) outside[(int64_t)ref->ids[i]] = -INFINITY;
    const struct row_softmax row = row_softmax(outside, vocab, ref->of.temperature);
    free(outside);
    return row;
}

/* r is 1 less a sum of exponentials: an error of some u, whatever is left, which log r - log s and p_j/s multiply. */
static struct row_sizes sizes_of_row(const void *room, int64_t r) {
    const struct linear_topk_kl_ref *ref = room;
    const int64_t vocab = ref->of.head.vocab;
    const double *logits = ref->of.head.logits + r * vocab, temperature = ref->of.temperature, u = 0x1p-24;
    const struct row_softmax all = row_softmax(logits, vocab, temperature), outside = softmax_outside(ref, r);
    const double largest = fabs(all.max) + (isfinite(outside.max) ? fabs(outside.max) : 0);
    const double scaled = temperature == 1 ? 0 : 2 * largest;
    double mass = 0, terms = 0, most = 0;
    for (int64_t i = r * ref->k; i < (r + 1) * ref->k; i++) {
        const double q = ref->ids[i] < 0 ? 0 : exp(ref->logprobs[i]);
        if (q == 0) continue;
        const double z = logits[(int64_t)ref->ids[i]] / temperature;
        mass += q, terms += q * (fabs(ref->logprobs[i]) + fabs(z - all.max) + scaled);
        most = fmax(most, exp(z - all.max) / all.sum * (1 + scaled / 4) + q);
    }
    if (isfinite(outside.max)) {
        const double log_s = outside.max - all.max + log(outside.sum) - log(all.sum), rest = fmax(1 - mass, u);
        terms += (rest + 1) * (1 + fabs(log(rest)) + fabs(log_s) + scaled);
        most = fmax(most, (exp(log_s) + rest) / outside.sum * (1 + scaled / 4) + 1 / outside.sum);
    }
    return (struct row_sizes){terms + (1 + fabs(log(all.sum))), most};
}

static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    const struct linear_topk_kl_ref ref = reference_of(c, types, t);
    const struct distillation_errors errors = {16, has(c, GENERAL) ? 8.0 * (double)c->size[HIDDEN] : 0};
    linear_topk_kl_reference(&ref);
    distillation_magnitudes(&ref.of, &ref, sizes_of_row, errors, &at, magnitude);
    release(&ref);
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

/* clang-format off */
#define CASE(text, rows, hidden, vocab, chunk, k, temperature, ...)                                                    \
    {.label = text, .size = {rows, hidden, vocab, chunk, k}, .scalar = {temperature}, __VA_ARGS__}
/* The first has every tensor. Chunks: of one row, prime, a divisor, all rows, more than all. Lists: of one id, shorter and longer
 * than a block of threads, of all ids. */
static const struct op_case cases[] = {
    CASE("all",                           11,  9,   33,  3,   5, 1,   .flags = LABELED | BIASED | HOLES),
    CASE("1x1x1",                          1,  1,    1,  1,   1, 1),
    CASE("5x3x2, chunk 1",                 5,  3,    2,  1,   1, 1,   .flags = SUM),
    CASE("6x8x16, chunk 2",                6,  8,   16,  2,   4, 2,   .flags = MEAN | LABELED),
    CASE("7x17x15, all ids",               7, 17,   15,  5,  15, .7,  .flags = MEAN),
    CASE("7x17x15, all ids but holes",     7, 17,   15,  5,  15, .7,  .flags = HOLES | BIASED),
    CASE("12x16x64, one chunk",           12, 16,   64, 12,  31, 1,   .flags = LABELED),
    CASE("11x31x67, buffer too large",    11, 31,   67, 16,  33, 4,   .flags = SUM | LABELED),
    CASE("9x12x40, nothing but the list",  9, 12,   40,  4,   7, 1,   .flags = OUTSIDE_MASKED | NO_DBIAS),
    CASE("9x12x40, the others far away",   9, 12,   40,  4,   7, 1,   .flags = FAR | LABELED),
    CASE("13x20x41 raw",                  13, 20,   41,  4,   6, 2,   .flags = RAW | LABELED),
    CASE("13x20x41 raw mean",             13, 20,   41,  7,   8, 1,   .flags = RAW | MEAN | BIASED),
    CASE("9x12x40 no dx",                  9, 12,   40,  4,   3, 1,   .flags = NO_DX | LABELED),
    CASE("9x12x40 no dweight",             9, 12,   40,  4,   3, 1,   .flags = NO_DWEIGHT | LABELED | BIASED),
    CASE("9x12x40 only dbias",             9, 12,   40,  4,   3, 1,   .flags = NO_DX | NO_DWEIGHT | BIASED),
    CASE("9x12x35 no dbias",               9, 12,   35,  4,   3, 1,   .flags = NO_DBIAS | LABELED | BIASED),
    CASE("9x12x35 no loss",                9, 12,   35,  4,   3, 1,   .flags = NO_LOSS | LABELED),
    CASE("9x12x35 loss only",              9, 12,   35,  4,   3, 1,   .flags = LOSS_ONLY | SUM),
    CASE("9x12x40 loss only, labels",      9, 12,   40,  4,   9, 2,   .flags = LOSS_ONLY | LABELED),
    CASE("23x45x131 general",             23, 45,  131,  8,  17, 1,   .flags = GENERAL, .dtypes = 1u << LIGER_F32),
    CASE("6x9x300, long lists",            6,  9,  300,  4, 270, 1,   .flags = HOLES | LABELED),
    CASE("150x33x1032",                  150, 33, 1032, 64,  64, 1,   .flags = SUM | LABELED, .large = true),
    CASE("60x33x2051",                    60, 33, 2051, 64, 1500, 1,  .flags = LABELED, .large = true),
    CASE("no rows",                        0,  9,   33,  3,   4, 1,   .flags = LABELED | BIASED, .edge = true),
    CASE("no rows, no buffer",             0,  9,   33,  0,   4, 1,   .flags = SUM, .edge = true),
    CASE("all ignored",                    5,  9,   33,  2,   4, 1,   .flags = IGNORED, .edge = true),
    CASE("all ignored, raw mean",          5,  9,   40,  2,   4, 2,   .flags = IGNORED | RAW | MEAN, .edge = true),
};
static const struct op_case bench[] = {
    CASE("1024x1024x32000, k 64", 1024, 1024, 32000, 352, 64, 1),
    CASE("4096x4096x128256, k 64", 4096, 4096, 128256, 4096, 64, 1, .large = true, .dtypes = 1u << LIGER_BF16),
};
/* clang-format on */

static const struct op_gradient gradients[] = {{DX, X}, {DWEIGHT, WEIGHT}, {DBIAS, BIAS}};

static const struct op_provocation provocations[] = {
    HEAD_PROVOCATIONS(LOGITS, "logits"),
    {"no ids", OP_SHAPE(IDS, 1, 0), LIGER_ERR_SHAPE, {"ids"}},
    HEAD_ROWS_OVERLAP,
    TEMPERATURE_PROVOCATIONS(TEMPERATURE),
    {"temperature below 0", OP_SCALAR(TEMPERATURE, -1), LIGER_ERR_ARGUMENT, {"temperature is -1", "larger than 0"}},
};

/* ---- properties ------------------------------------------------------------------------------------------------- */

static bool counts(const struct op_run *run, int64_t r) { return !run->t[LABELS] || run->t[LABELS][r] != -100; }

/* A teacher who is the student: no loss, no gradient, to the last roundings of what they are made of. */
static const char *agreement(struct op_run *run) {
    if (run->types.t != LIGER_F32 || !run->t[LOSS] || has(&run->c, GENERAL | RAW))
        return op_run_not_applicable(run, "agreement: the case has no loss, or its logits or logprobs are rounded");
    const int64_t vocab = run->c.size[VOCAB], k = run->c.size[K];
    struct linear_topk_kl_ref ref = reference_of(&run->c, &run->types, run->t);
    double largest = 1, norm = 0;
    linear_topk_kl_reference(&ref);
    for (int64_t r = 0; r < run->c.size[ROWS]; r++) {
        const double *z = ref.of.head.logits + r * vocab;
        double sum = 0;
        for (int64_t j = 0; j < vocab; j++) sum += exp(z[j] / ref.of.temperature);
        for (int64_t i = 0; i < k; i++)
            if (run->t[IDS][r * k + i] >= 0)
                run->t[LOGPROBS][r * k + i] = z[(int64_t)run->t[IDS][r * k + i]] / ref.of.temperature - log(sum);
        for (int64_t j = 0; j < vocab; j++)
            if (isfinite(z[j])) largest = fmax(largest, fabs(z[j] / ref.of.temperature));
    }
    release(&ref);
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    const double rows = has(&run->c, SUM) ? (double)run->c.size[ROWS] : 1;
    /* Of r and each log q and log p some u of the largest; log r of a small one is not in it, r times it is. */
    const double bound = rows * 64 * 0x1p-24 * (largest + log((double)vocab));
    if (!(fabs(*run->t[LOSS]) <= bound)) return op_run_text(run, "the loss is %g, not within %g", *run->t[LOSS], bound);
    for (int64_t j = 0; run->t[DBIAS] && j < vocab; j++) norm = fmax(norm, fabs(run->t[DBIAS][j]));
    return norm <= bound / ref.of.temperature ? NULL : op_run_text(run, "a gradient is %g, not within %g", norm, bound);
}

/* Empty places say nothing, and the order of a list does not matter but for the order of sums. */
static const char *empty_places(struct op_run *run) {
    if (!has(&run->c, HOLES) || !run->t[LOSS]) return op_run_not_applicable(run, "empty places: the case has none");
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    const double loss = *run->t[LOSS], dbias = run->t[DBIAS][0];
    for (int64_t i = 0; i < run->count[IDS]; i++)
        if (run->t[IDS][i] < 0) run->t[LOGPROBS][i] = i % 2 ? NAN : 3;
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    return *run->t[LOSS] == loss && run->t[DBIAS][0] == dbias ? NULL : "a logprob of no id changes the result";
}

/* The loss is NaN, and of dx the row, and no other. */
static const char *only_row_is_nan(struct op_run *run, int64_t broken) {
    const int64_t hidden = run->c.size[HIDDEN];
    if (op_run_call(run) != LIGER_OK) return op_run_text(run, "refused: %s", liger_last_error());
    if (run->t[LOSS] && !isnan(*run->t[LOSS])) return op_run_text(run, "the loss is %g", *run->t[LOSS]);
    for (int64_t i = 0; run->t[DX] && i < run->count[DX]; i++)
        if (isnan(run->t[DX][i]) != (i / hidden == broken))
            return op_run_text(run, "dx[%lld] is %g", (long long)i, run->t[DX][i]);
    return NULL;
}
static int64_t last_counted(const struct op_run *run) {
    int64_t r = run->c.size[ROWS] - 1;
    while (r > 0 && !counts(run, r)) r--;
    return r;
}
static const char *too_much(struct op_run *run) {
    const int64_t r = last_counted(run);
    const double logs[] = {log(1.05), 5, 60, INFINITY};
    const char *wrong = NULL;
    for (int i = 0; i < OP_COUNT(logs) && !wrong; i++) {
        run->t[LOGPROBS][r * run->c.size[K]] = logs[i];
        wrong = only_row_is_nan(run, r);
    }
    return wrong;
}
static const char *an_id_twice(struct op_run *run) {
    const int64_t r = last_counted(run), k = run->c.size[K];
    if (k < 2) return op_run_not_applicable(run, "an id twice: lists of one");
    run->t[IDS][r * k + k - 1] = run->t[IDS][r * k];
    run->t[LOGPROBS][r * k + k - 1] = -30;
    return only_row_is_nan(run, r);
}
static const char *out_of_range(struct op_run *run) {
    const int64_t r = last_counted(run), k = run->c.size[K];
    for (int below = 0; below < 2; below++) {
        run->t[IDS][r * k + k - 1] = below ? -2 : (double)run->c.size[VOCAB];
        if (liger_context_device(run->context) != LIGER_DEVICE_CPU) {
            const char *wrong = only_row_is_nan(run, r);
            if (wrong) return wrong;
            continue;
        }
        const liger_status status = op_run_call(run);
        if (status != LIGER_ERR_TARGET) return op_run_text(run, "the status was %s", liger_status_name(status));
        if (!strstr(liger_last_error(), "which is out of bounds")) return op_run_text(run, "%s", liger_last_error());
    }
    return NULL;
}

/* What the teacher leaves is more than rounding, and there is nothing that the student could give it. */
static const char *rest_without_outside(struct op_run *run) {
    if (has_rest(&run->c) || !run->t[LOSS])
        return op_run_not_applicable(run, "a rest and nothing outside: the case has");
    for (int64_t i = 0; i < run->count[LOGPROBS]; i++) run->t[LOGPROBS][i] -= .1;
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    return *run->t[LOSS] == INFINITY ? NULL : op_run_text(run, "the loss is %g", *run->t[LOSS]);
}

/* Rows that do not count may hold anything. */
static const char *ignored_lists(struct op_run *run) {
    if (!run->t[LABELS]) return op_run_not_applicable(run, "lists of ignored rows: the case has no labels");
    const int64_t k = run->c.size[K];
    for (int64_t i = 0; i < run->count[IDS]; i++)
        if (!counts(run, i / k)) run->t[IDS][i] = 1e6, run->t[LOGPROBS][i] = NAN;
    if (op_run_call(run) != LIGER_OK) return op_run_text(run, "refused: %s", liger_last_error());
    for (int64_t i = 0; run->t[DX] && i < run->count[DX]; i++)
        if (!isfinite(run->t[DX][i])) return op_run_text(run, "dx[%lld] is %g", (long long)i, run->t[DX][i]);
    return run->t[LOSS] && !isfinite(*run->t[LOSS]) ? "the loss is not finite" : NULL;
}

static const char *in_dweight(struct op_run *run) { return head_in_dweight(run, DWEIGHT); }

static const struct op_property properties[] = {
    {"chunks of any size", head_any_chunk},
    {"logits in dweight", in_dweight, .of_a_cpu = true},
    {"agreement", agreement},
    {"empty places", empty_places},
    {"probabilities above 1", too_much},
    {"an id twice", an_id_twice},
    {"an id out of range", out_of_range},
    {"a rest and nothing outside", rest_without_outside},
    {"lists of rows that do not count", ignored_lists},
};

#define INEXACT HEAD_INEXACT("softmax")

const struct op_cases linear_topk_kl_cases = {
    .name = "linear_topk_kl",
    .tensor_count = TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_linear_topk_kl,
    .workspace = workspace_linear_topk_kl,
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
