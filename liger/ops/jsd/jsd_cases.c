/* jsd_cases.c - tolerances, extremes, properties and bench points of the generalized Jensen-Shannon divergence; shapes are those
 * of all divergences. */
#include <float.h>
#include <math.h>

#include "liger/core/mixture.h"
#include "liger/ops/jsd/jsd.h"
#include "liger/ops/jsd/jsd_ref.h"
#include "tests/harness/divergence_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { EXTREME = DIVERGENCE_OWN };

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    divergence_describe(c, spec);
    for (int i = DIVERGENCE_X; i <= DIVERGENCE_Y; i++) {
        spec[i].spread = 2, spec[i].offset = -5;
        spec[i].ranges = 1u << RANGE_TINY | 1u << RANGE_SUBNORMAL;
    }
}

/* Every pair of these as x and y. */
static const double extremes[] = {-INFINITY, -3, 0, -1e4, -300, NAN, -50};

static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    divergence_prepare(c, types, t);
    for (int64_t i = 0; c->flags & EXTREME && i < c->size[DIVERGENCE_ROWS] * c->size[DIVERGENCE_COLS]; i++) {
        t[DIVERGENCE_X][i] = extremes[i % OP_COUNT(extremes)];
        t[DIVERGENCE_Y][i] = extremes[i / OP_COUNT(extremes) % OP_COUNT(extremes)];
    }
}

static void options(const struct op_case *c, void *args) {
    liger_jsd_args *a = args;
    DIVERGENCE_FILL(a, c);
    a->beta = c->scalar[0];
}
OP_DOOR(jsd, options)
OP_DOOR_WORKSPACE(jsd)

/* Of the larger of P and Q: what an error of one unit in their logarithms, exponentials and in log g amounts to. In 16 bits
 * the products of their logarithms with log2 e are rounded, on CUDA. */
static double size_of(const struct op_types *types, double beta, double x, double y) {
    const double larger = fmax(x, y), apart = fabs(x - y), smaller = fmin(beta, 1 - beta);
    const double rough = types->t == LIGER_F16 || types->t == LIGER_BF16 ? 1 + fabs(larger) / 4 : 0;
    double parts = 1 + rough;
    if (smaller == 0) parts += fabs(x) + fabs(y);
    else if (smaller >= MIXTURE_SKEW) parts += isfinite(apart) ? fmin(apart, 1) : 0;
    else
        parts *= smaller *
                 (1 + fmin(apart, 1 - log(smaller))); /* all terms have this factor, or a logarithm up to its own */
    const double size = exp(larger) * parts;
    return isfinite(size) ? size : 0;
}

/* A weight that would be no normal number is the smallest of these. */
static double beta_of(const struct op_case *c) {
    const double beta = c->scalar[0];
    return beta > 0 ? fmax(beta, FLT_MIN) : 0;
}

static struct divergence_term term(const struct op_case *c, const struct op_types *types, double x, double y) {
    const double beta = beta_of(c);
    struct divergence_term made;
    jsd_reference(beta, x, y, &made.value, &made.slope);
    made.value_size = made.slope_size = size_of(types, beta, x, y);
    if (beta > 0 && 1 - beta >= MIXTURE_SKEW) made.slope_size *= 1 - beta;
    return made;
}
static struct divergence_term naive_term(const struct op_case *c, const struct op_types *types, double x, double y) {
    struct divergence_term made = {0};
    (void)types;
    jsd_naive(c->scalar[0], x, y, &made.value, &made.slope);
    return made;
}

static void reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    divergence_evaluate(c, types, t, term, false);
}
static void naive(const struct op_case *c, const struct op_types *types, double *const *t) {
    divergence_evaluate(c, types, t, naive_term, true);
}
static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    divergence_magnitudes(c, types, t, magnitude, term);
}
static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    return divergence_loss(c, types, t, term);
}

/* Of equal matrices the divergence is 0, and its slope is too, but for what KL(Q || P) gets from Q itself. */
static const char *of_equals(struct op_run *run) {
    const int64_t count = run->count[DIVERGENCE_X];
    const double beta = run->c.scalar[0];
    if (run->types.weight != run->types.t)
        return op_run_not_applicable(run, "equal matrices: of two dtypes they are not");
    for (int64_t i = 0; i < count; i++) run->t[DIVERGENCE_Y][i] = run->t[DIVERGENCE_X][i];
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    for (int64_t i = 0; run->t[DIVERGENCE_LOSS] && i < run->count[DIVERGENCE_LOSS]; i++)
        if (run->t[DIVERGENCE_LOSS][i] != 0) return op_run_text(run, "the loss is %g", run->t[DIVERGENCE_LOSS][i]);
    for (int64_t i = 0; run->t[DIVERGENCE_DX] && beta > 0 && beta < 1 && i < count; i++)
        if (run->t[DIVERGENCE_DX][i] != 0)
            return op_run_text(run, "dx[%lld] is %g", (long long)i, run->t[DIVERGENCE_DX][i]);
    return NULL;
}
static const struct op_property properties[] = {
    {.label = "nothing lies between equal matrices", .check = of_equals},
};

#define BETA(beta) .scalar = {beta}

/* clang-format off */
#define SKEW(text, beta)                                                                                               \
    {.label = "5x41 beta " text, .size = {5, 41}, BETA(beta), .flags = LIGER_REDUCTION_NONE},                          \
    {.label = "7x160 beta " text, .size = {7, 160}, BETA(beta), .flags = LIGER_REDUCTION_BATCHMEAN | DIVERGENCE_LABELLED}, \
    {.label = "extremes, beta " text, .size = {7, 49}, BETA(beta), .flags = LIGER_REDUCTION_NONE | EXTREME,            \
     .edge = true}
/* clang-format on */

static const struct op_case cases[] = {
    DIVERGENCE_CASES(0, BETA(.5)),
    DIVERGENCE_CASES(0, BETA(0)),
    DIVERGENCE_CASES(0, BETA(1)),
    {.label = "5x40 beta .1", .size = {5, 40}, BETA(.1), .flags = LIGER_REDUCTION_NONE},
    {.label = "5x41 beta .9", .size = {5, 41}, BETA(.9), .flags = LIGER_REDUCTION_BATCHMEAN},
    SKEW(".015", .015),
    SKEW("1 - .015", 1 - .015),
    SKEW("1e-3", 1e-3),
    SKEW("1 - 1e-3", 1 - 1e-3),
    SKEW("1e-4", 1e-4),
    SKEW("1 - 1e-4", 1 - 1e-4),
    SKEW("1e-6", 1e-6),
    SKEW("1 - 1e-6", 1 - 1e-6),
    SKEW("1e-12", 1e-12),
    SKEW("1 - 1e-12", 1 - 1e-12),
    SKEW("1e-30", 1e-30),
    {.label = "5x41 beta 1e-50", .size = {5, 41}, BETA(1e-50), .flags = LIGER_REDUCTION_NONE, .edge = true},
    {.label = "extremes", .size = {7, 49}, BETA(.3), .flags = LIGER_REDUCTION_NONE | EXTREME, .edge = true},
    {.label = "extremes, beta 0", .size = {7, 49}, BETA(0), .flags = LIGER_REDUCTION_NONE | EXTREME, .edge = true},
    {.label = "extremes, beta 1", .size = {7, 49}, BETA(1), .flags = LIGER_REDUCTION_NONE | EXTREME, .edge = true},
};
static const struct op_gradient gradients[] = {{DIVERGENCE_DX, DIVERGENCE_X}};
static const struct op_case bench[] = {DIVERGENCE_BENCH(BETA(.5)), DIVERGENCE_BENCH(BETA(0))};

const struct op_cases jsd_cases = {
    .name = "jsd",
    .tensor_count = DIVERGENCE_TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_jsd,
    .workspace = workspace_jsd,
    .reference = reference,
    .naive = naive,
    .magnitudes = magnitudes,
    .loss = loss,
    .no_range[RANGE_HUGE] = "log-probabilities are not: their exponentials overflow",
    .no_range[RANGE_OFFSET] = "log-probabilities are not: their exponentials overflow",
    OP_GRADIENTS(gradients),
    OP_PROPERTIES(properties),
    OP_BENCH(bench),
};
