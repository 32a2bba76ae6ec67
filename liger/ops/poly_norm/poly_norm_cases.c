/* poly_norm_cases.c - what the drivers need to know about PolyNorm.
 *
 * Budgets. y: one rounding at the store; the powers and their chain of sums are a part of the largest term, which may cancel
 * against the others. A power's relative error is that many units; a root halves the sum's. */
#include <math.h>

#include "liger/ops/poly_norm/poly_norm.h"
#include "liger/ops/poly_norm/poly_norm_ref.h"
#include "tests/harness/norm_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/rows_cases.h"

enum { NO_RSTD = 1, NO_DX = 2, NO_DWEIGHT = 4, NO_DBIAS = 8 };

/* clang-format off */
static const struct op_case cases[] = {
    {"5x33",            {0, 5, 33},     {1e-5}},
    {"4x40 no rstd",    {0, 4, 40},     {1e-6}, .flags = NO_RSTD},
    {"3x24 only dx",    {0, 3, 24},     {1e-6}, .flags = NO_DWEIGHT | NO_DBIAS},
    {"3x24 no dx",      {0, 3, 24},     {1e-6}, .flags = NO_DX},
    {"3x24 no dbias",   {0, 3, 24},     {1e-6}, .flags = NO_DBIAS},
    {"3x24 only dbias", {0, 3, 24},     {1e-6}, .flags = NO_DX | NO_DWEIGHT},
    {"3x24 epsilon 0",  {0, 3, 24},     {0}},
    {"1-d of 19",       {0, -1, 19},    {1e-6}},
    {"3-d 2x3x20",      {2, 3, 20},     {1e-6}},
    {"3-d 3x5x130",     {3, 5, 130},    {1e-12}},
    {"1x1",             {0, 1, 1},      {1e-6}},
    {"7x3",             {0, 7, 3},      {1e-6}},
    {"4x15",            {0, 4, 15},     {1e-6}},
    {"4x16",            {0, 4, 16},     {1e-6}},
    {"4x17",            {0, 4, 17},     {1e-6}},
    {"9x64",            {0, 9, 64},     {1e-6}},
    {"300x40",          {0, 300, 40},   {1e-6}},
    {"5x1000",          {0, 5, 1000},   {1e-5}},
    {"141x520",         {0, 141, 520},  {1e-6}},
    {"70x1024",         {0, 70, 1024},  {1e-6}, .large = true},
    {"37x4099",         {0, 37, 4099},  {1e-6}, .large = true},
    {"2100x129",        {0, 2100, 129}, {1e-6}, .large = true},
    {"2100x136",        {0, 2100, 136}, {1e-6}, .large = true},
    {"601x520",         {0, 601, 520},  {1e-6}, .large = true},
    {"2100x520",        {0, 2100, 520}, {1e-6}, .large = true},
    {"401x1544",        {0, 401, 1544}, {1e-6}, .large = true},
    {"11x5160",         {0, 11, 5160},  {1e-6}, .large = true},
    {"7x9000",          {0, 7, 9000},   {1e-6}, .large = true},
    {"19x16384",        {0, 19, 16384}, {1e-6}, .large = true},
    {"3x70001",         {0, 3, 70001},  {1e-6}, .large = true},
    {"no rows",         {0, 0, 33},     {1e-6}, .edge = true},
    {"no rows, 3-d",    {2, 0, 33},     {1e-6}, .edge = true},
};
static const struct op_case bench[] = {
    {"2048x4096",   {0, 2048, 4096},  {1e-6}},
    {"16384x4096",  {0, 16384, 4096}, {1e-6}},
};
/* clang-format on */

/* The sixth powers of a row are added up. */
static struct tensor_spec input(const struct op_case *c) {
    struct tensor_spec spec = rows_tensor(c, "x", ROLE_IN);
    norm_ranges(c, &spec, OP_EVERY_RANGE, 0x1p12, 0x1p-5);
    return spec;
}

/* Of `size` elements that all columns share. */
static struct tensor_spec parameter(const char *name, enum tensor_role role, int64_t size, bool absent) {
    struct tensor_spec spec = op_parameter(name, role, size, absent);
    spec.specials = false;
    return spec;
}

static struct tensor_spec per_power(const struct op_case *c, enum tensor_role role) {
    return (struct tensor_spec){.name = "rstd", .role = role, .kind = KIND_F32, .ndim = 2, .shape = {rows_of(c), 3}};
}

static struct poly_norm_ref problem(const struct op_case *c, const double *x, const double *weight,
                                    const double *bias) {
    return (struct poly_norm_ref){.rows = rows_of(c),
                                  .cols = c->size[COLS],
                                  .epsilon = (float)c->scalar[EPSILON],
                                  .x = x,
                                  .weight = weight,
                                  .bias = bias};
}

static double rstd_of(const struct op_case *c, const double *x, int64_t r, int power) {
    return norm_rstd(c, x + r * c->size[COLS], c->size[COLS], power);
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { X, WEIGHT, BIAS, Y, RSTD, FORWARD_TENSORS };

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const double cols = (double)c->size[COLS];
    spec[X] = input(c);
    spec[WEIGHT] = parameter("weight", ROLE_IN, 3, false);
    spec[BIAS] = parameter("bias", ROLE_IN, 1, false);
    spec[BIAS].values = VALUES_NORMAL;
    spec[Y] = rows_tensor(c, "y", ROLE_OUT);
    spec[Y].relative = 1;
    spec[Y].absolute = 12 + cols / 32;
    spec[RSTD] = per_power(c, ROLE_OUT);
    spec[RSTD].absent = c->flags & NO_RSTD;
    spec[RSTD].relative = 6 + cols / 32;
}

OP_DOOR_SCALARS(poly_norm_forward, "epsilon")

OP_EVALUATED(forward, struct poly_norm_ref, problem(c, t[X], t[WEIGHT], t[BIAS]), poly_norm_ref_forward,
             poly_norm_naive_forward, t[Y], t[RSTD])

/* The sum of the terms without their signs. */
static void magnitudes_forward(const struct op_case *c, const struct op_types *types, double *const *t,
                               double *magnitude) {
    (void)types;
    for (int64_t r = 0; r < rows_of(c); r++) {
        double factor[3];
        for (int k = 0; k < 3; k++) factor[k] = fabs(t[WEIGHT][k]) * rstd_of(c, t[X], r, 3 - k);
        for (int64_t i = r * c->size[COLS]; i < (r + 1) * c->size[COLS]; i++) {
            const double x = fabs(t[X][i]);
            op_raise(&magnitude[Y], ((factor[0] * x + factor[1]) * x + factor[2]) * x + fabs(t[BIAS][0]));
        }
    }
}

const struct op_cases poly_norm_forward_cases = {
    .name = "poly_norm_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .call = call_poly_norm_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .magnitudes = magnitudes_forward,
    .no_loss = OP_IS_FORWARD,
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

enum { DY, BX, BWEIGHT, BRSTD, DX, DWEIGHT, DBIAS, BACKWARD_TENSORS };

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    const double cols = (double)c->size[COLS], terms = cols * (double)rows_of(c);
    spec[DY] = rows_tensor(c, "dy", ROLE_IN);
    spec[DY].ranges = 1u << RANGE_HUGE | 1u << RANGE_OFFSET;
    spec[DY].huge = 0x1p40;
    spec[BX] = input(c);
    spec[BX].specials =
        false; /* an infinity that rstd does not know of: Inf - Inf, or not, by the order of the terms */
    spec[BWEIGHT] = parameter("weight", ROLE_IN, 3, false);
    spec[BRSTD] = per_power(c, ROLE_IN);
    spec[DX] = rows_tensor(c, "dx", ROLE_OUT);
    spec[DX].absent = c->flags & NO_DX;
    spec[DX].relative = 1;
    spec[DX].absolute = 16 + cols / 16;
    spec[DWEIGHT] = parameter("dweight", ROLE_OUT, 3, c->flags & NO_DWEIGHT);
    spec[DBIAS] = parameter("dbias", ROLE_OUT, 1, c->flags & NO_DBIAS);
    for (int i = DWEIGHT; i <= DBIAS; i++) {
        spec[i].relative = 1;
        spec[i].absolute = 8 + sqrt(terms) / 16; /* of what is added up, without its signs */
    }
}

/* rstd belongs to x. */
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t i = 0; i < 3 * rows_of(c); i++) t[BRSTD][i] = rstd_of(c, t[BX], i / 3, 3 - (int)(i % 3));
}

OP_DOOR(poly_norm_backward, NULL)
OP_DOOR_WORKSPACE(poly_norm_backward)

OP_EVALUATED(backward, struct poly_norm_ref, problem(c, t[BX], t[BWEIGHT], NULL), poly_norm_ref_backward,
             poly_norm_naive_backward, t[DY], t[BRSTD], t[DX], t[DWEIGHT], t[DBIAS])

/* dx is a sum of six terms, and the parameters' gradients are sums over everything: without their signs. */
static void magnitudes_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                double *magnitude) {
    const int64_t cols = c->size[COLS];
    double weighted[3] = {0, 0, 0};
    (void)types;
    for (int64_t r = 0; r < rows_of(c); r++) {
        const double *x = t[BX] + r * cols, *dy = t[DY] + r * cols;
        double mean[3] = {0, 0, 0};
        for (int64_t i = 0; i < cols; i++)
            for (int k = 0; k < 3; k++) {
                const double term = fabs(dy[i] * pow(x[i], 3 - k)) * t[BRSTD][3 * r + k];
                if (isfinite(term)) mean[k] += term / (double)cols, weighted[k] += term;
            }
        for (int64_t i = 0; i < cols; i++) {
            double sum = 0;
            if (isfinite(dy[i])) magnitude[DBIAS] += fabs(dy[i]);
            for (int k = 0; k < 3; k++) {
                const double rstd = t[BRSTD][3 * r + k], normal = fabs(pow(x[i], 3 - k)) * rstd;
                sum += fabs(t[BWEIGHT][k]) * (3 - k) * fabs(pow(x[i], 2 - k)) * rstd * (fabs(dy[i]) + normal * mean[k]);
            }
            op_raise(&magnitude[DX], sum);
        }
    }
    for (int k = 0; k < 3; k++) op_raise(&magnitude[DWEIGHT], weighted[k]);
}

/* The reference's own rstd, so that its derivative takes part. */
static void forward_of(const void *p, double *y) { poly_norm_ref_forward(p, y, NULL); }
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const double bias = 0;
    const struct poly_norm_ref p = problem(c, t[BX], t[BWEIGHT], &bias);
    (void)types;
    return op_loss(elements_of(c), t[DY], forward_of, &p);
}

static const struct op_gradient gradients[] = {{DX, BX}, {DWEIGHT, BWEIGHT}};

const struct op_cases poly_norm_backward_cases = {
    .name = "poly_norm_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare_backward,
    .call = call_poly_norm_backward,
    .workspace = workspace_poly_norm_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes_backward,
    .loss = loss_backward,
    OP_GRADIENTS(gradients),
    OP_BENCH(bench),
};
