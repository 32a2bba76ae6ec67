/* layer_norm_cases.c - what the drivers need to know about LayerNorm.
 *
 * Budgets. y: one rounding at the store. The mean is a chain of cols/16 additions on the narrowest machine, and its error
 * is a part of the largest |x|, not of what is left of x after the subtraction: the magnitude of y says so. The variance is
 * such a chain too, its error halved by the root. */
#include <math.h>

#include "liger/ops/layer_norm/layer_norm.h"
#include "liger/ops/layer_norm/layer_norm_ref.h"
#include "tests/harness/norm_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"
#include "tests/harness/rows_cases.h"

enum { NO_WEIGHT = 1, NO_BIAS = 2, NO_STATISTICS = 4, NO_DX = 8, NO_DWEIGHT = 16, NO_DBIAS = 32 };

/* clang-format off */
static const struct op_case cases[] = {
    {"5x33",              {0, 5, 33},     {1e-5}},
    {"4x40 no weight",    {0, 4, 40},     {1e-6}, .flags = NO_WEIGHT},
    {"4x40 no bias",      {0, 4, 40},     {1e-6}, .flags = NO_BIAS},
    {"3x24 neither",      {0, 3, 24},     {1e-6}, .flags = NO_WEIGHT | NO_BIAS},
    {"3x24 only y",       {0, 3, 24},     {1e-6}, .flags = NO_STATISTICS},
    {"3x24 only dx",      {0, 3, 24},     {1e-6}, .flags = NO_DWEIGHT | NO_DBIAS},
    {"3x24 no dx",        {0, 3, 24},     {1e-6}, .flags = NO_DX},
    {"3x24 no dbias",     {0, 3, 24},     {1e-6}, .flags = NO_DBIAS},
    {"3x24 only dbias",   {0, 3, 24},     {1e-6}, .flags = NO_DX | NO_DWEIGHT},
    {"3x24 epsilon 0",    {0, 3, 24},     {0}},
    {"1-d of 19",         {0, -1, 19},    {1e-6}},
    {"3-d 2x3x20",        {2, 3, 20},     {1e-6}},
    {"3-d 3x5x130",       {3, 5, 130},    {1e-12}},
    {"1x1",               {0, 1, 1},      {1e-6}},
    {"7x3",               {0, 7, 3},      {1e-6}},
    {"4x15",              {0, 4, 15},     {1e-6}},
    {"4x16",              {0, 4, 16},     {1e-6}},
    {"4x17",              {0, 4, 17},     {1e-6}},
    {"9x64",              {0, 9, 64},     {1e-6}},
    {"9x127",             {0, 9, 127},    {1e-6}},
    {"300x40",            {0, 300, 40},   {1e-6}},
    {"5x1000",            {0, 5, 1000},   {1e-5}},
    {"141x520",           {0, 141, 520},  {1e-6}},
    {"70x1024",           {0, 70, 1024},  {1e-6}, .large = true},
    {"37x4099",           {0, 37, 4099},  {1e-6}, .large = true},
    {"2100x129",          {0, 2100, 129}, {1e-6}, .large = true},
    {"601x520",           {0, 601, 520},  {1e-6}, .large = true},
    {"2100x520",          {0, 2100, 520}, {1e-6}, .large = true},
    {"401x1544",          {0, 401, 1544}, {1e-6}, .large = true},
    {"281x3080",          {0, 281, 3080}, {1e-6}, .large = true},
    {"11x5160",           {0, 11, 5160},  {1e-6}, .large = true},
    {"19x16384",          {0, 19, 16384}, {1e-6}, .large = true},
    {"3x70001",           {0, 3, 70001},  {1e-6}, .large = true},
    {"no rows",           {0, 0, 33},     {1e-6}, .edge = true},
    {"no rows, 3-d",      {2, 0, 33},     {1e-6}, .edge = true},
};
static const struct op_case bench[] = {
    {"2048x4096",   {0, 2048, 4096},  {1e-6}},
    {"4096x4096",   {0, 4096, 4096},  {1e-6}},
    {"16384x4096",  {0, 16384, 4096}, {1e-6}},
};
/* clang-format on */

static struct layer_norm_ref problem(const struct op_case *c, const double *x, const double *weight,
                                     const double *bias) {
    return (struct layer_norm_ref){.rows = rows_of(c),
                                   .cols = c->size[COLS],
                                   .epsilon = (float)c->scalar[EPSILON],
                                   .x = x,
                                   .weight = weight,
                                   .bias = bias};
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { X, WEIGHT, BIAS, Y, MEAN, RSTD, FORWARD_TENSORS };

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const double cols = (double)c->size[COLS];
    spec[X] = norm_input(c, "x", OP_EVERY_RANGE);
    spec[WEIGHT] = op_parameter("weight", ROLE_IN, c->size[COLS], c->flags & NO_WEIGHT);
    spec[BIAS] = op_parameter("bias", ROLE_IN, c->size[COLS], c->flags & NO_BIAS);
    spec[BIAS].values = VALUES_NORMAL;
    spec[Y] = rows_tensor(c, "y", ROLE_OUT);
    spec[Y].relative = 1;
    spec[Y].absolute = 8 + cols / 16;
    spec[MEAN] = rows_statistic(c, "mean", ROLE_OUT, c->flags & NO_STATISTICS);
    spec[MEAN].relative = 1; /* the division: subnormal means are rounded to their steps */
    spec[MEAN].absolute = 2 + cols / 16;
    spec[MEAN].steps = 1; /* the quotient of a subnormal sum */
    spec[RSTD] = rows_statistic(c, "rstd", ROLE_OUT, c->flags & NO_STATISTICS);
    spec[RSTD].relative = 4 + cols / 16;
}

OP_DOOR_SCALARS(layer_norm_forward, "epsilon")

OP_EVALUATED(forward, struct layer_norm_ref, problem(c, t[X], t[WEIGHT], t[BIAS]), layer_norm_ref_forward,
             layer_norm_naive_forward, t[Y], t[MEAN], t[RSTD])

static void magnitudes_forward(const struct op_case *c, const struct op_types *types, double *const *t,
                               double *magnitude) {
    const int64_t cols = c->size[COLS];
    (void)types;
    for (int64_t r = 0; r < rows_of(c); r++) {
        const double *x = t[X] + r * cols, rstd = norm_moments(c, x, cols).rstd;
        for (int64_t k = 0; k < cols; k++) {
            const double scale = t[WEIGHT] ? fabs(t[WEIGHT][k]) : 1;
            op_raise(&magnitude[MEAN], fabs(x[k]));
            op_raise(&magnitude[Y], fabs(x[k]) * rstd * scale + (t[BIAS] ? fabs(t[BIAS][k]) : 0));
        }
    }
}

static const char *rows_of_one_value(struct op_run *run) {
    return norm_of_one_value(run, X, Y, run->c.size[COLS], BIAS, 1);
}

static const struct op_property forward_properties[] = {{"rows of one value", rows_of_one_value}};

const struct op_cases layer_norm_forward_cases = {
    .name = "layer_norm_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .call = call_layer_norm_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .magnitudes = magnitudes_forward,
    .no_loss = OP_IS_FORWARD,
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

enum { DY, BX, BWEIGHT, BMEAN, BRSTD, DX, DWEIGHT, DBIAS, BACKWARD_TENSORS };

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    const double cols = (double)c->size[COLS], rows = (double)rows_of(c);
    spec[DY] = norm_input(c, "dy", 1u << RANGE_HUGE | 1u << RANGE_OFFSET);
    spec[BX] = norm_input(c, "x", OP_EVERY_RANGE);
    spec[BWEIGHT] = op_parameter("weight", ROLE_IN, c->size[COLS], c->flags & NO_WEIGHT);
    spec[BMEAN] = rows_statistic(c, "mean", ROLE_IN, false);
    spec[BRSTD] = rows_statistic(c, "rstd", ROLE_IN, false);
    spec[DX] = rows_tensor(c, "dx", ROLE_OUT);
    spec[DX].absent = c->flags & NO_DX;
    spec[DX].relative = 1;
    spec[DX].absolute = 8 + cols / 16;
    spec[DWEIGHT] = op_parameter("dweight", ROLE_OUT, c->size[COLS], c->flags & NO_DWEIGHT);
    spec[DBIAS] = op_parameter("dbias", ROLE_OUT, c->size[COLS], c->flags & NO_DBIAS);
    for (int i = DWEIGHT; i <= DBIAS; i++) {
        if (c->flags & NO_WEIGHT) spec[i].kind = KIND_F32;
        spec[i].relative = 1;
        spec[i].absolute = 8 + rows / 8;
    }
}

/* mean and rstd belong to x. */
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t r = 0; r < rows_of(c); r++) {
        const struct norm_moments moments = norm_moments(c, t[BX] + r * c->size[COLS], c->size[COLS]);
        t[BMEAN][r] = moments.mean, t[BRSTD][r] = moments.rstd;
    }
}

OP_DOOR(layer_norm_backward, NULL)
OP_DOOR_WORKSPACE(layer_norm_backward)

OP_EVALUATED(backward, struct layer_norm_ref, problem(c, t[BX], t[BWEIGHT], NULL), layer_norm_ref_backward,
             layer_norm_naive_backward, t[DY], t[BMEAN], t[BRSTD], t[DX], t[DWEIGHT], t[DBIAS])

/* dx is a difference of three terms: its error follows the largest one. */
static void magnitudes_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                double *magnitude) {
    const struct layer_norm_ref p = problem(c, t[BX], t[BWEIGHT], NULL);
    (void)types;
    for (int64_t r = 0; r < p.rows; r++) {
        double largest = 0, normal = 0;
        for (int64_t k = 0; k < p.cols; k++) {
            const double g = t[DY][r * p.cols + k] * (p.weight ? p.weight[k] : 1);
            op_raise(&largest, fabs(g));
            op_raise(&normal, fabs(p.x[r * p.cols + k] - t[BMEAN][r]) * t[BRSTD][r]);
        }
        op_raise(&magnitude[DX], t[BRSTD][r] * largest * (1 + normal));
    }
}

/* The reference's own statistics, so that their derivatives take part. */
static void forward_of(const void *p, double *y) { layer_norm_ref_forward(p, y, NULL, NULL); }
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct layer_norm_ref p = problem(c, t[BX], t[BWEIGHT], NULL);
    (void)types;
    return op_loss(elements_of(c), t[DY], forward_of, &p);
}

static const struct op_gradient gradients[] = {{DX, BX}, {DWEIGHT, BWEIGHT}};

const struct op_cases layer_norm_backward_cases = {
    .name = "layer_norm_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare_backward,
    .call = call_layer_norm_backward,
    .workspace = workspace_layer_norm_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes_backward,
    .loss = loss_backward,
    OP_GRADIENTS(gradients),
    OP_BENCH(bench),
};
