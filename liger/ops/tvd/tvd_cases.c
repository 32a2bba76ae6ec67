/* tvd_cases.c - tolerances, extremes and bench points of the total variation distance; shapes are those of all divergences. */
#include "liger/ops/tvd/tvd.h"

#include <math.h>

#include "liger/ops/tvd/tvd_ref.h"
#include "tests/harness/divergence_cases.h"
#include "tests/harness/op_door.h"

enum { TIES = DIVERGENCE_OWN };

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    divergence_describe(c, spec);
    for (int i = DIVERGENCE_X; i <= DIVERGENCE_Y; i++) {
        spec[i].specials = true;
        spec[i].ranges = OP_EVERY_RANGE;
        spec[i].huge = 0x1p100;
    }
}

static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    divergence_prepare(c, types, t);
    for (int64_t i = 0; c->flags & TIES && i < c->size[DIVERGENCE_ROWS] * c->size[DIVERGENCE_COLS]; i++)
        if (i % 3) t[DIVERGENCE_X][i] = t[DIVERGENCE_Y][i] = (double)(i % 16) / 8;
}

static void options(const struct op_case *c, void *args) { DIVERGENCE_FILL((liger_tvd_args *)args, c); }
OP_DOOR(tvd, options)
OP_DOOR_WORKSPACE(tvd)

static struct divergence_term term(const struct op_case *c, const struct op_types *types, double x, double y) {
    struct divergence_term made;
    (void)c, (void)types;
    tvd_reference(x, y, &made.value, &made.slope);
    made.value_size = fabs(made.value), made.slope_size = fabs(made.slope);
    return made;
}
static struct divergence_term naive_term(const struct op_case *c, const struct op_types *types, double x, double y) {
    struct divergence_term made = {0};
    (void)c, (void)types;
    tvd_naive(x, y, &made.value, &made.slope);
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
    DIVERGENCE_CASES(0, .scalar = {0}),
    {.label = "ties", .size = {7, 50}, .flags = LIGER_REDUCTION_NONE | TIES, .edge = true},
};
static const struct op_gradient gradients[] = {{DIVERGENCE_DX, DIVERGENCE_X}};
static const struct op_case bench[] = {DIVERGENCE_BENCH(.scalar = {0})};

const struct op_cases tvd_cases = {
    .name = "tvd",
    .tensor_count = DIVERGENCE_TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_tvd,
    .workspace = workspace_tvd,
    .reference = reference,
    .naive = naive,
    .magnitudes = magnitudes,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_BENCH(bench),
};
