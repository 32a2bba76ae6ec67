/* cross_entropy_cases.c - shapes, tolerances, properties and bench points of cross entropy. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "liger/ops/cross_entropy/cross_entropy.h"
#include "liger/ops/cross_entropy/cross_entropy_cases.h"
#include "liger/ops/cross_entropy/cross_entropy_ref.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

/* Both functions share one order of tensors; backward has no results. */
enum { LOGITS, TARGET, WEIGHT, UPSTREAM, DLOGITS, BACKWARD_TENSORS };
enum { LOSS = BACKWARD_TENSORS, Z_LOSS, ACCURACY, PREDICTED, FORWARD_TENSORS };
enum { ROWS, VOCAB };
enum {
    WEIGHTED = 4,  /* class weights */
    SCALED = 8,    /* an upstream gradient in forward */
    BARE = 16,     /* only the loss is asked for */
    GRADIENT = 32, /* only loss and gradient: the kernel without options */
    IGNORED = 64,  /* every target is ignored */
    SURE = 128,    /* p of the target is about .9999 */
    HIGH = 256,
    LOW = 512,     /* all logits shifted by +1e4, -1e4 */
    MASKED = 1024, /* most logits are -inf */
    POISON = 2048  /* ignored rows hold NaN */
};

/* ---- shared with the linear loss ---------------------------------------------------------------------------------- */

int32_t cross_entropy_reduction(const struct op_case *c) {
    static const int32_t reductions[] = {LIGER_REDUCTION_MEAN, LIGER_REDUCTION_SUM, LIGER_REDUCTION_NONE};
    return reductions[c->flags & REDUCTION];
}

struct tensor_spec cross_entropy_target(int64_t rows, int64_t vocab, bool all_ignored) {
    return (struct tensor_spec){.name = "target",
                                .kind = KIND_INDEX,
                                .values = VALUES_TARGET,
                                .spread = (double)vocab,
                                .offset = -100,
                                .ignore_every = all_ignored ? 1 : 3,
                                .ndim = 1,
                                .shape = {rows}};
}

struct tensor_spec cross_entropy_weight(const char *name, int64_t vocab, bool present) {
    return (struct tensor_spec){
        .name = name, .kind = KIND_F32, .values = VALUES_POSITIVE, .absent = !present, .ndim = 1, .shape = {vocab}};
}

struct tensor_spec cross_entropy_upstream(int64_t rows, bool by_row, bool present) {
    return (struct tensor_spec){
        .name = "upstream", .kind = KIND_F32, .absent = !present, .ndim = by_row, .shape = {rows}};
}

void cross_entropy_describe_results(const struct op_case *c, struct tensor_spec *spec, int64_t rows, bool others) {
    struct tensor_spec result = {
        .role = ROLE_OUT, .kind = KIND_T, .ndim = (c->flags & REDUCTION) == NONE, .shape = {rows}};
    result.relative = 1.05, result.absolute = 32;
    spec[0] = spec[1] = result;
    spec[0].name = "loss";
    spec[1].name = "z_loss", spec[1].absent = !others;
    spec[2] = (struct tensor_spec){.name = "accuracy",
                                   .role = ROLE_OUT,
                                   .kind = KIND_F32,
                                   .ndim = result.ndim,
                                   .shape = {rows},
                                   .absent = !others,
                                   .relative = 2};
    spec[3] = (struct tensor_spec){
        .name = "predicted", .role = ROLE_OUT, .kind = KIND_I64, .ndim = 1, .shape = {rows}, .absent = !others};
}

static const char *refusal_of_target(struct op_run *run, liger_status status, int64_t row, int64_t value) {
    char text[64];
    snprintf(text, sizeof text, "target[%lld] is %lld", (long long)row, (long long)value);
    if (status != LIGER_ERR_TARGET) return op_run_text(run, "the status was %s", liger_status_name(status));
    const char *said = liger_last_error();
    if (!strstr(said, text) || !strstr(said, "out of bounds")) return op_run_text(run, "the message was: %s", said);
    return NULL;
}

const char *cross_entropy_target_out_of_range(struct op_run *run, int target, int gradient, int loss) {
    const int64_t rows = run->count[target], beyond = (int64_t)run->spec[target].spread;
    const double *d = run->t[gradient];
    run->t[target][rows - 1] = (double)beyond;
    const liger_status status = op_run_call(run);
    if (liger_context_device(run->context) == LIGER_DEVICE_CPU) return refusal_of_target(run, status, rows - 1, beyond);
    if (status != LIGER_OK) return op_run_text(run, "the status was %s", liger_status_name(status));
    const int64_t cols = d ? run->count[gradient] / rows : 0;
    for (int64_t i = 0; i < rows * cols; i++)
        if (isnan(d[i]) != (i >= (rows - 1) * cols))
            return op_run_text(run, "%s[%lld] is %g", run->spec[gradient].name, (long long)i, d[i]);
    if (loss >= 0 && !isnan(run->t[loss][run->count[loss] - 1])) return "the loss is not NaN";
    return NULL;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

static void describe_shared(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t rows = c->size[ROWS], vocab = c->size[VOCAB];
    spec[LOGITS] = (struct tensor_spec){.name = "logits",
                                        .role = ROLE_IN,
                                        .kind = KIND_T,
                                        .values = VALUES_NORMAL,
                                        .spread = 2,
                                        .offset = c->flags & HIGH  ? 1e4
                                                  : c->flags & LOW ? -1e4
                                                                   : 0,
                                        .ndim = 2,
                                        .shape = {rows, vocab},
                                        .gaps = true,
                                        .ranges = OP_EVERY_RANGE,
                                        .huge = 0x1p100}; /* smoothing adds up a row; the square of z-loss overflows */
    /* x/softcap of a subnormal x has fewer bits: which logit is the largest may change. */
    if (c->scalar[SOFTCAP] != 0) spec[LOGITS].ranges &= ~(1u << RANGE_SUBNORMAL);
    spec[TARGET] = cross_entropy_target(rows, vocab, c->flags & IGNORED);
    spec[WEIGHT] = cross_entropy_weight("weight", vocab, c->flags & WEIGHTED);
    spec[UPSTREAM] = cross_entropy_upstream(rows, (c->flags & REDUCTION) == NONE, c->flags & SCALED);
    /* f32 steps: exponential, sum over the row (pairwise), quotient, coefficients: about 16 u of the largest element. */
    spec[DLOGITS] = (struct tensor_spec){.name = "dlogits",
                                         .role = ROLE_OUT,
                                         .kind = KIND_T,
                                         .ndim = 2,
                                         .shape = {rows, vocab},
                                         .gaps = true,
                                         .absent = c->flags & BARE,
                                         .relative = 1.05,
                                         .absolute = 16};
}

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    describe_shared(c, spec);
    cross_entropy_describe_results(c, &spec[LOSS], c->size[ROWS], !(c->flags & (BARE | GRADIENT)));
}

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    describe_shared(c, spec);
    spec[UPSTREAM].absent = false;
}

static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    const int64_t vocab = c->size[VOCAB];
    for (int64_t r = 0; r < c->size[ROWS]; r++) {
        double *row = t[LOGITS] + r * vocab;
        const int64_t y = (int64_t)t[TARGET][r];
        for (int64_t j = 0; j < vocab; j++) {
            if (y < 0 && c->flags & POISON) row[j] = j % 2 ? NAN : INFINITY;
            if (y >= 0 && c->flags & SURE) row[j] = j == y ? 9.5 + log((double)vocab) : row[j] / 4;
            if (y >= 0 && c->flags & MASKED && j != y && j % 3) row[j] = -INFINITY;
        }
    }
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static void forward_options(const struct op_case *c, void *args) {
    CROSS_ENTROPY_FILL((liger_cross_entropy_forward_args *)args, c);
}
static void backward_options(const struct op_case *c, void *args) {
    CROSS_ENTROPY_FILL((liger_cross_entropy_backward_args *)args, c);
}
OP_DOOR(cross_entropy_forward, forward_options)
OP_DOOR_WORKSPACE(cross_entropy_forward)
OP_DOOR(cross_entropy_backward, backward_options)
OP_DOOR_WORKSPACE(cross_entropy_backward)

/* ---- reference -------------------------------------------------------------------------------------------------- */

static struct cross_entropy_ref backward_of(const struct op_case *c, double *const *t) {
    return (struct cross_entropy_ref){
        .rows = c->size[ROWS],
        .vocab = c->size[VOCAB],
        CROSS_ENTROPY_OPTIONS_OF(c),
        .upstream_by_row = (c->flags & REDUCTION) == NONE,
        .logits = t[LOGITS],
        .target = t[TARGET],
        .weight = t[WEIGHT],
        .upstream = t[UPSTREAM],
        .dlogits = t[DLOGITS],
    };
}
static struct cross_entropy_ref forward_of(const struct op_case *c, double *const *t) {
    struct cross_entropy_ref ref = backward_of(c, t);
    ref.loss = t[LOSS], ref.z_loss = t[Z_LOSS], ref.accuracy = t[ACCURACY], ref.predicted = t[PREDICTED];
    return ref;
}
OP_EVALUATED_WHOLE(forward, struct cross_entropy_ref, forward_of(c, t), cross_entropy_reference, cross_entropy_naive)
OP_EVALUATED_WHOLE(backward, struct cross_entropy_ref, backward_of(c, t), cross_entropy_reference, cross_entropy_naive)
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    double loss[64] = {0}, total = 0;
    struct cross_entropy_ref ref = backward_of(c, t);
    ref.dlogits = NULL;
    ref.loss = loss;
    cross_entropy_reference(&ref);
    for (int64_t r = 0; r < ((c->flags & REDUCTION) == NONE ? c->size[ROWS] : 1); r++)
        total += t[UPSTREAM][r] * loss[r];
    return total;
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

/* The first has every tensor. Vocabularies: 1, around the lanes of a vector, primes, powers of two, more than one block
 * of the CPU, one cluster of each size (and one past what a cluster holds) on CUDA. */
/* clang-format off */
static const struct op_case forward_cases[] = {
    {"all",                           {5, 33},      {.1, 1e-3, 8}, .flags = WEIGHTED | SCALED},
    {"1x1",                           {1, 1}},
    {"4x2",                           {4, 2},       .flags = SUM},
    {"7x15",                          {7, 15},      .flags = NONE},
    {"7x16",                          {7, 16},      .flags = GRADIENT},
    {"7x17",                          {7, 17},      .flags = GRADIENT | NONE | SCALED},
    {"64x1000",                       {64, 1000},   .flags = GRADIENT},
    {"64x1000 loss only",             {64, 1000},   .flags = BARE},
    {"9x4096",                        {9, 4096},    {0, 1e-4}, .flags = GRADIENT | WEIGHTED},
    {"9x5003",                        {9, 5003},    {0, 1e-4}, .flags = SUM},
    {"9x5000 smooth",                 {9, 5000},    {.1}, .flags = MEAN},
    {"9x5000 smooth weighted",        {9, 5000},    {.2, 1e-4}, .flags = WEIGHTED},
    {"9x2048 cap",                    {9, 2048},    {0, 0, 5}, .flags = MEAN},
    {"9x2049 cap smooth",             {9, 2049},    {.3, 1e-4, 30}, .flags = NONE | WEIGHTED | SCALED},
    {"6x32000",                       {6, 32000},   .flags = GRADIENT},
    {"6x32000 all results",           {6, 32000},   {.1, 1e-4}, .flags = MEAN},
    {"150x32000",                     {150, 32000}, .flags = GRADIENT, .large = true},
    {"40x128256",                     {40, 128256}, .flags = GRADIENT, .dtypes = 1u << LIGER_BF16, .large = true},
    {"3x128256",                      {3, 128256},  .flags = GRADIENT, .large = true},
    {"3x128256 all results",          {3, 128256},  {.1, 1e-4, 20}, .large = true},
    {"3x151936",                      {3, 151936},  .flags = GRADIENT, .large = true},
    {"3x262144",                      {3, 262144},  .flags = GRADIENT, .large = true},
    {"3x300001",                      {3, 300001},  .flags = MEAN, .large = true},
    {"3x262144",                      {3, 262144},  .flags = GRADIENT, .dtypes = 1u << LIGER_BF16, .large = true},
    {"3x1000000",                     {3, 1000000}, .flags = GRADIENT, .large = true},
    {"no rows",                       {0, 40},      .edge = true},
    {"no rows, none",                 {0, 40},      .flags = NONE, .edge = true},
    {"all ignored",                   {5, 40},      .flags = IGNORED, .edge = true},
    {"all ignored, weights",          {5, 40},      .flags = IGNORED | WEIGHTED | SUM, .edge = true},
    {"sure",                          {8, 1000},    .flags = SURE | SUM, .edge = true},
    {"sure, gradient only",           {8, 8192},    .flags = SURE | SUM | GRADIENT, .edge = true},
    {"high",                          {8, 1000},    .flags = HIGH | SUM, .edge = true, .dtypes = 1u << LIGER_F32 | 1u << LIGER_BF16},
    {"high smooth",                   {8, 1000},    {.1}, .flags = HIGH | SUM, .edge = true, .dtypes = 1u << LIGER_F32 | 1u << LIGER_BF16},
    {"low",                           {8, 1003},    .flags = LOW | GRADIENT, .edge = true, .dtypes = 1u << LIGER_F32 | 1u << LIGER_BF16},
    {"masked",                        {8, 1000},    {0, 1e-3}, .flags = MASKED, .edge = true},
    {"masked cap",                    {8, 1000},    {0, 0, 10}, .flags = MASKED, .edge = true},
    {"masked, gradient only",         {8, 1001},    .flags = MASKED | GRADIENT, .edge = true},
    {"NaN in ignored rows",           {9, 1000},    {.1}, .flags = POISON, .edge = true},
    {"NaN in ignored rows, gradient", {9, 1000},    .flags = POISON | GRADIENT, .edge = true},
};

static const struct op_case backward_cases[] = {
    {"all",                 {5, 33},    {.1, 1e-3, 8}, .flags = WEIGHTED},
    {"1x1",                 {1, 1}},
    {"4x7",                 {4, 7},     .flags = SUM | WEIGHTED},
    {"7x16",                {7, 16},    .flags = NONE},
    {"7x17",                {7, 17},    {.1, 1e-3}, .flags = NONE},
    {"5x40 cap",            {5, 40},    {0, 1e-3, 3}, .flags = NONE | WEIGHTED},
    {"9x5000",              {9, 5000},  .flags = NONE, .large = true},
    {"9x32000",             {9, 32000}, .flags = MEAN, .large = true},
    {"no rows",             {0, 40},    .edge = true},
    {"all ignored",         {5, 40},    .flags = IGNORED, .edge = true},
    {"NaN in ignored rows", {9, 100},   .flags = POISON | NONE, .edge = true},
};
/* clang-format on */

static const struct op_gradient gradients[] = {{DLOGITS, LOGITS}};

/* ---- refusals --------------------------------------------------------------------------------------------------- */

static const struct op_provocation forward_provocations[] = {CROSS_ENTROPY_RESULT_PROVOCATIONS(LOSS, Z_LOSS, ACCURACY)};

/* ---- properties ------------------------------------------------------------------------------------------------- */

/* Without z-loss and soft cap a shift of the logits changes nothing, so the gradient has no component along it. */
static const char *rows_sum_to_zero(struct op_run *run) {
    const int64_t vocab = run->c.size[VOCAB];
    if (run->t[DLOGITS] == NULL || run->c.scalar[Z_SCALE] != 0 || run->c.scalar[SOFTCAP] != 0)
        return op_run_not_applicable(run, "rows of dlogits: with z-loss or a soft cap they do not sum to 0");
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    for (int64_t r = 0; r < run->c.size[ROWS]; r++) {
        double sum = 0, magnitude = 0;
        for (int64_t j = 0; j < vocab; j++) {
            sum += run->t[DLOGITS][r * vocab + j];
            magnitude += fabs(run->t[DLOGITS][r * vocab + j]);
        }
        const double limit = magnitude * (format_unit(run->types.t) + 64 * 0x1p-24) +
                             (double)vocab * (run->types.t == LIGER_F16 ? 0x1p-25 : 0);
        if (!(fabs(sum) <= limit))
            return op_run_text(run, "row %lld of dlogits sums to %g, allowed is %g", (long long)r, sum, limit);
    }
    return NULL;
}

/* Adding 4 to logits that are multiples of 1/64 is exact in f32 and changes neither loss nor gradient. */
static const char *shift_invariance(struct op_run *run) {
    const int64_t count = run->c.size[ROWS] * run->c.size[VOCAB];
    if (run->types.t != LIGER_F32 || run->c.scalar[Z_SCALE] != 0 || run->c.scalar[SOFTCAP] != 0)
        return op_run_not_applicable(run, "a common shift: z-loss and a soft cap see it, and in 16 bits it is rounded");
    for (int64_t i = 0; i < count; i++) run->t[LOGITS][i] = round(run->t[LOGITS][i] * 64) / 64;
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    const int64_t losses = run->count[LOSS];
    double before[64];
    for (int64_t i = 0; i < losses && i < 64; i++) before[i] = run->t[LOSS][i];
    for (int64_t i = 0; i < count; i++) run->t[LOGITS][i] += 4;
    if (op_run_call(run) != LIGER_OK) return "the shifted call failed";
    for (int64_t i = 0; i < losses && i < 64; i++)
        if (fabs(before[i] - run->t[LOSS][i]) > 4 * 0x1p-24 * fabs(before[i]))
            return op_run_text(run, "loss[%lld] was %.9g, with shifted logits %.9g", (long long)i, before[i],
                               run->t[LOSS][i]);
    return NULL;
}

static const char *target_out_of_range(struct op_run *run) {
    return cross_entropy_target_out_of_range(run, TARGET, DLOGITS, LOSS);
}

/* One element of a row whose values are the largest and smallest that a dtype has: what all rows are like, in turn. */
static double extreme_logit(liger_dtype t, int64_t row, int64_t j) {
    const double most = format_largest(t);
    switch (row % 7) {
        case 0: return -most;
        case 1: return most;
        case 2: return j % 2 ? -INFINITY : -most;
        case 3: return j % 5 == 0 ? 0 : -most;
        case 4: return j % 3 == 0 ? -most * 0.75 : -most;
        case 5: return j % 4 == 0 ? most : -most;
        default: return j % 3 == 0 ? most : most * 0.75;
    }
}

/* Of k largest logits each has 1/k, and what is far below has nothing: the target, which is one of them, loses log k. */
static const char *extreme_logits(struct op_run *run) {
    const int64_t rows = run->c.size[ROWS], vocab = run->c.size[VOCAB];
    const bool none = (run->c.flags & REDUCTION) == NONE, mean = (run->c.flags & REDUCTION) == MEAN;
    if (run->c.scalar[Z_SCALE] != 0 || run->c.scalar[SOFTCAP] != 0 || run->c.scalar[SMOOTHING] != 0 ||
        run->c.flags & (WEIGHTED | SCALED))
        return op_run_not_applicable(run, "extreme logits: what is right is worked out for the loss without options");
    for (int64_t r = 0; r < rows; r++) {
        run->t[TARGET][r] = 0;
        for (int64_t j = 0; j < vocab; j++) run->t[LOGITS][r * vocab + j] = extreme_logit(run->types.t, r, j);
    }
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    const double share = mean ? 1.0 / (double)rows : 1, near = 2 * format_unit(run->types.t) + 64 * 0x1p-24;
    double total = 0;
    for (int64_t r = 0; r < rows; r++) {
        const double *x = run->t[LOGITS] + r * vocab;
        int64_t equal = 0;
        for (int64_t j = 0; j < vocab; j++) equal += x[j] == x[0];
        const double loss = log((double)equal);
        total += loss * share;
        if (none && !(fabs(run->t[LOSS][r] - loss) <= near * loss))
            return op_run_text(run, "loss[%lld] is %g, and log %lld is %g", (long long)r, run->t[LOSS][r],
                               (long long)equal, loss);
        for (int64_t j = 0; run->t[DLOGITS] && j < vocab; j++) {
            const double d = run->t[DLOGITS][r * vocab + j];
            const double want = ((x[j] == x[0] ? 1 / (double)equal : 0) - (j == 0)) * share;
            if (!(fabs(d - want) <= near * fabs(want) + (run->types.t == LIGER_F16 ? 0x1p-25 : 0)))
                return op_run_text(run, "dlogits[%lld][%lld] is %g instead of %g", (long long)r, (long long)j, d, want);
        }
    }
    if (!none && !(fabs(run->t[LOSS][0] - total) <= near * total))
        return op_run_text(run, "the loss is %g instead of %g", run->t[LOSS][0], total);
    return NULL;
}

static const struct op_property forward_properties[] = {
    {"the largest and smallest logits there are", extreme_logits},
    {"a target out of range", target_out_of_range},
    {"rows of dlogits sum to 0", rows_sum_to_zero},
    {"a common shift changes nothing", shift_invariance},
};

/* ---- bench ------------------------------------------------------------------------------------------------------ */

/* clang-format off */
static const struct op_case bench[] = {
    {"1024x32000",            {1024, 32000},  .flags = GRADIENT},
    {"1024x32000 loss only",  {1024, 32000},  .flags = BARE},
    {"16384x32000",           {16384, 32000}, .flags = GRADIENT, .dtypes = 1u << LIGER_BF16, .large = true},
    {"16384x32000 loss only", {16384, 32000}, .flags = BARE, .dtypes = 1u << LIGER_BF16, .large = true},
    {"8192x128256",           {8192, 128256}, .flags = GRADIENT, .dtypes = 1u << LIGER_BF16, .large = true},
    {"8192x128256 loss only", {8192, 128256}, .flags = BARE, .dtypes = 1u << LIGER_BF16, .large = true},
};
/* clang-format on */

const struct op_cases cross_entropy_forward_cases = {
    .name = "cross_entropy_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(forward_cases),
    .prepare = prepare,
    .call = call_cross_entropy_forward,
    .workspace = workspace_cross_entropy_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .no_loss = OP_IS_FORWARD,
    OP_PROVOCATIONS(forward_provocations),
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
};

const struct op_cases cross_entropy_backward_cases = {
    .name = "cross_entropy_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(backward_cases),
    .prepare = prepare,
    .call = call_cross_entropy_backward,
    .workspace = workspace_cross_entropy_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .loss = loss_backward,
    OP_GRADIENTS(gradients),
};
