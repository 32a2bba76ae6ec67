/* kl_div_cases.c - tolerances, extremes and bench points of the Kullback-Leibler divergence; shapes are those of all
 * divergences. */
#include "liger/ops/kl_div/kl_div.h"

#include <math.h>

#include "liger/ops/kl_div/kl_div_ref.h"
#include "tests/harness/divergence_cases.h"
#include "tests/harness/op_door.h"

enum { LOG_TARGET = DIVERGENCE_OWN, EXTREME = 2 * DIVERGENCE_OWN };

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    divergence_describe(c, spec);
    spec[DIVERGENCE_X].offset = -3;
    spec[DIVERGENCE_X].ranges = OP_EVERY_RANGE;
    spec[DIVERGENCE_X].huge = 0x1p60;
    spec[DIVERGENCE_Y].specials = spec[DIVERGENCE_X].specials = true;
    spec[DIVERGENCE_Y].values = c->flags & LOG_TARGET ? VALUES_NORMAL : VALUES_POSITIVE;
    spec[DIVERGENCE_Y].offset = c->flags & LOG_TARGET ? -3 : 0;
}

/* Every pair of these as x and y. */
static const double extreme_x[] = {-INFINITY, -3, 0, -1e4, INFINITY, NAN, -50};
static const double extreme_y[] = {0, 1, 1e-30, 1e-10, 0.3, NAN, 1e-40};
static const double extreme_log_y[] = {-INFINITY, 0, -1, -300, -87, NAN, -100};

static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    divergence_prepare(c, types, t);
    for (int64_t i = 0; c->flags & EXTREME && i < c->size[DIVERGENCE_ROWS] * c->size[DIVERGENCE_COLS]; i++) {
        t[DIVERGENCE_X][i] = extreme_x[i % OP_COUNT(extreme_x)];
        t[DIVERGENCE_Y][i] = (c->flags & LOG_TARGET ? extreme_log_y : extreme_y)[i / OP_COUNT(extreme_x) % 7];
    }
}

static void options(const struct op_case *c, void *args) {
    liger_kl_div_args *a = args;
    DIVERGENCE_FILL(a, c);
    a->log_target = (c->flags & LOG_TARGET) != 0;
    a->eps = (float)c->scalar[0];
}
OP_DOOR(kl_div, options)
OP_DOOR_WORKSPACE(kl_div)

static struct divergence_term term(const struct op_case *c, const struct op_types *types, double x, double y) {
    const bool log_target = (c->flags & LOG_TARGET) != 0;
    struct divergence_term made;
    kl_div_reference(log_target, (double)(float)c->scalar[0], x, y, &made.value, &made.slope);
    made.slope_size = fabs(made.slope);
    made.value_size = fabs(made.value) + (made.slope == 0 ? 0 : 2 * fabs(made.slope * x));
    if (types->t == LIGER_F16 || types->t == LIGER_BF16)
        made.value_size += made.slope_size / 2; /* the logarithm on CUDA */
    return made;
}
static struct divergence_term naive_term(const struct op_case *c, const struct op_types *types, double x, double y) {
    struct divergence_term made = {0};
    (void)types;
    kl_div_naive((c->flags & LOG_TARGET) != 0, (double)(float)c->scalar[0], x, y, &made.value, &made.slope);
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

static const struct op_case cases[] = {
    DIVERGENCE_CASES(0, .scalar = {1e-10}),
    DIVERGENCE_CASES(LOG_TARGET, .scalar = {1e-10}),
    {.label = "5x40 eps", .size = {5, 40}, .scalar = {.8}, .flags = LIGER_REDUCTION_SUM},
    {.label = "extremes", .size = {7, 49}, .flags = LIGER_REDUCTION_NONE | EXTREME, .edge = true},
    {.label = "extremes, log target",
     .size = {7, 49},
     .flags = LIGER_REDUCTION_NONE | EXTREME | LOG_TARGET,
     .edge = true},
};
static const struct op_gradient gradients[] = {{DIVERGENCE_DX, DIVERGENCE_X}};
static const struct op_case bench[] = {DIVERGENCE_BENCH(.scalar = {1e-10})};

const struct op_cases kl_div_cases = {
    .name = "kl_div",
    .tensor_count = DIVERGENCE_TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_kl_div,
    .workspace = workspace_kl_div,
    .reference = reference,
    .naive = naive,
    .magnitudes = magnitudes,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_BENCH(bench),
};
