/* dyt_cases.c - what the drivers need to know about dynamic tanh.
 *
 * Budgets. y and dx: one rounding at the store, and the error of tanh and of its slope in f32: a few units, and as many more
 * as alpha·x is large, because the rounding of the exponent counts there. The parameters' gradients are sums, whose terms
 * cancel: their errors follow what is added up. */
#include <math.h>

#include "liger/ops/dyt/dyt.h"
#include "liger/ops/dyt/dyt_ref.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"
#include "tests/harness/rows_cases.h"

enum { NO_BETA = 1, NO_DX = 2, NO_DALPHA = 4, NO_DGAMMA = 8, NO_DBETA = 16 };

/* clang-format off */
static const struct op_case cases[] = {
    {"5x33",                {0, 5, 33}},
    {"4x40 no beta",        {0, 4, 40},     .flags = NO_BETA},
    {"3x24 only dx",        {0, 3, 24},     .flags = NO_DALPHA | NO_DGAMMA | NO_DBETA},
    {"3x24 no dx",          {0, 3, 24},     .flags = NO_DX},
    {"3x24 only dalpha",    {0, 3, 24},     .flags = NO_DX | NO_DGAMMA | NO_DBETA},
    {"3x24 only dgamma",    {0, 3, 24},     .flags = NO_DX | NO_DALPHA | NO_DBETA},
    {"3x24 only dbeta",     {0, 3, 24},     .flags = NO_DX | NO_DALPHA | NO_DGAMMA},
    {"1-d of 19",           {0, -1, 19}},
    {"3-d 2x3x20",          {2, 3, 20}},
    {"3-d 3x5x130",         {3, 5, 130}},
    {"1x1",                 {0, 1, 1}},
    {"7x3",                 {0, 7, 3}},
    {"4x15",                {0, 4, 15}},
    {"4x16",                {0, 4, 16}},
    {"4x17",                {0, 4, 17}},
    {"9x64",                {0, 9, 64}},
    {"300x40",              {0, 300, 40}},
    {"1031x8",              {0, 1031, 8}},
    {"5x1000",              {0, 5, 1000}},
    {"70x1024",             {0, 70, 1024},  .large = true},
    {"37x4099",             {0, 37, 4099},  .large = true},
    {"2100x136",            {0, 2100, 136}, .large = true},
    {"19x16384",            {0, 19, 16384}, .large = true},
    {"3x70001",             {0, 3, 70001},  .large = true},
    {"no rows",             {0, 0, 33},     .edge = true},
    {"no rows, 3-d",        {2, 0, 33},     .edge = true},
};
static const struct op_case bench[] = {
    {"2048x4096",   {0, 2048, 4096}},
    {"16384x4096",  {0, 16384, 4096}},
};
/* clang-format on */

static struct tensor_spec alpha_of(const char *name, enum tensor_role role, bool absent) {
    struct tensor_spec spec = op_parameter(name, role, 1, absent);
    spec.specials = false;
    return spec;
}

static struct dyt_ref problem(const struct op_case *c, const double *x, const double *alpha, const double *gamma,
                              const double *beta) {
    return (struct dyt_ref){
        .rows = rows_of(c), .cols = c->size[COLS], .x = x, .alpha = alpha, .gamma = gamma, .beta = beta};
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { X, ALPHA, GAMMA, BETA, Y, FORWARD_TENSORS };

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    spec[X] = rows_tensor(c, "x", ROLE_IN);
    spec[X].spread = 2;
    spec[X].ranges = OP_EVERY_RANGE;
    spec[ALPHA] = alpha_of("alpha", ROLE_IN, false);
    spec[GAMMA] = op_parameter("gamma", ROLE_IN, c->size[COLS], false);
    spec[BETA] = op_parameter("beta", ROLE_IN, c->size[COLS], c->flags & NO_BETA);
    spec[BETA].values = VALUES_NORMAL;
    spec[Y] = rows_tensor(c, "y", ROLE_OUT);
    spec[Y].relative = 1.05;
    spec[Y].absolute = 8;
    spec[Y].steps = 2; /* of alpha·x and of tanh, times gamma */
}

OP_DOOR(dyt_forward, NULL)

static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct dyt_ref p = problem(c, t[X], t[ALPHA], t[GAMMA], t[BETA]);
    (void)types;
    dyt_ref_forward(&p, t[Y]);
}

/* tanh over its range, to a part of itself: a budget that follows the largest one would not see the small ones. */
static const char *small_values(struct op_run *run) {
    const int64_t cols = run->c.size[COLS];
    const double coarse = run->types.t == LIGER_F32 ? 0x1p-22 : run->types.t == LIGER_F16 ? 0x1.1p-11 : 0x1.1p-8;
    *run->t[ALPHA] = 1;
    for (int64_t i = 0; i < cols; i++) run->t[GAMMA][i] = 1;
    for (int64_t i = 0; run->t[BETA] && i < cols; i++) run->t[BETA][i] = 0;
    for (int64_t i = 0; i < run->count[X]; i++)
        run->t[X][i] = op_round(run->types.t, (i % 2 ? 1 : -1) * pow(2, -12 + 15 * (double)i / (double)run->count[X]));
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    for (int64_t i = 0; i < run->count[X]; i++) {
        const double right = tanh(run->t[X][i]);
        if (!(fabs(run->t[Y][i] - right) <= coarse * fabs(right)))
            return op_run_text(run, "tanh(%.9g) is %.9g, but must be %.9g", run->t[X][i], run->t[Y][i], right);
    }
    return NULL;
}

static const struct op_property forward_properties[] = {{"small values", small_values}};

const struct op_cases dyt_forward_cases = {
    .name = "dyt_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .call = call_dyt_forward,
    .reference = reference_forward,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

enum { DY, BX, BALPHA, BGAMMA, DX, DALPHA, DGAMMA, DBETA, BACKWARD_TENSORS };

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    const double rows = (double)rows_of(c);
    spec[DY] = rows_tensor(c, "dy", ROLE_IN);
    spec[DY].ranges = 1u << RANGE_HUGE | 1u << RANGE_OFFSET;
    spec[DY].huge = 0x1p40;
    spec[BX] = rows_tensor(c, "x", ROLE_IN);
    spec[BX].spread = 2;
    spec[BX].ranges = OP_EVERY_RANGE;
    spec[BALPHA] = alpha_of("alpha", ROLE_IN, false);
    spec[BGAMMA] = op_parameter("gamma", ROLE_IN, c->size[COLS], false);
    spec[DX] = rows_tensor(c, "dx", ROLE_OUT);
    spec[DX].absent = c->flags & NO_DX;
    spec[DX].relative = 1.05;
    spec[DX].absolute = 16;
    spec[DALPHA] = alpha_of("dalpha", ROLE_OUT, c->flags & NO_DALPHA);
    spec[DGAMMA] = op_parameter("dgamma", ROLE_OUT, c->size[COLS], c->flags & NO_DGAMMA);
    spec[DBETA] = op_parameter("dbeta", ROLE_OUT, c->size[COLS], c->flags & NO_DBETA);
    for (int i = DALPHA; i <= DBETA; i++) {
        spec[i].relative = 1;
        spec[i].absolute = i == DALPHA ? 16 : 8 + rows / 8;
    }
    spec[DGAMMA].steps = 5 * rows; /* alpha·x and its tanh, half a step each, times |dy| <= 5 */
}

OP_DOOR(dyt_backward, NULL)
OP_DOOR_WORKSPACE(dyt_backward)

OP_EVALUATED(backward, struct dyt_ref, problem(c, t[BX], t[BALPHA], t[BGAMMA], NULL), dyt_ref_backward,
             dyt_naive_backward, t[DY], t[DX], t[DALPHA], t[DGAMMA], t[DBETA])

/* What dalpha adds up, without its signs. */
static void magnitudes_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                double *magnitude) {
    double alone = 0;
    (void)types;
    for (int64_t i = 0; i < elements_of(c); i++) {
        const double term = t[DY][i] * t[BGAMMA][i % c->size[COLS]] * t[BX][i] / pow(cosh(*t[BALPHA] * t[BX][i]), 2);
        if (isfinite(term)) alone += fabs(term);
    }
    magnitude[DALPHA] = alone;
}

static void forward_of(const void *p, double *y) { dyt_ref_forward(p, y); }
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct dyt_ref p = problem(c, t[BX], t[BALPHA], t[BGAMMA], NULL);
    (void)types;
    return op_loss(elements_of(c), t[DY], forward_of, &p);
}

static const struct op_gradient gradients[] = {{DX, BX}, {DALPHA, BALPHA}, {DGAMMA, BGAMMA}};

const struct op_cases dyt_backward_cases = {
    .name = "dyt_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .call = call_dyt_backward,
    .workspace = workspace_dyt_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes_backward,
    .loss = loss_backward,
    OP_GRADIENTS(gradients),
    OP_BENCH(bench),
};
