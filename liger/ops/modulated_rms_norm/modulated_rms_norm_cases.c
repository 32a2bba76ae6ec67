/* modulated_rms_norm_cases.c - shapes and tolerances of modulated RMSNorm. Budgets as RMSNorm's, relative to the terms of the
 * last sum: scale and shift may cancel. */
#include <math.h>
#include <stdlib.h>

#include "liger/ops/modulated_rms_norm/modulated_rms_norm.h"
#include "liger/ops/modulated_rms_norm/modulated_rms_norm_ref.h"
#include "liger/ops/rms_norm/rms_norm.h"
#include "tests/harness/norm_cases.h"
#include "tests/harness/op_door.h"

enum { GROUPS, GROUP_ROWS, COLS };
enum { OFFSET = NORM_SCALARS, CASTING };
enum { NO_WEIGHT = 1, NO_SHIFT = 2, NO_RSTD = 4, NO_DX = 8, NO_PARAMETERS = 16, VECTORS = 32 };

/* clang-format off */
static const struct op_case cases[] = {
    {"2x3x33 llama",            {2, 3, 33},     {1e-5, 0, LIGER_CAST_LLAMA}},
    {"2x3x33 gemma",            {2, 3, 33},     {1e-6, 1, LIGER_CAST_GEMMA}},
    {"2x3x33 none",             {2, 3, 33},     {1e-6, 0.1, LIGER_CAST_NONE}},
    {"3x2x24 no weight",        {3, 2, 24},     {1e-6, 0, LIGER_CAST_LLAMA}, .flags = NO_WEIGHT},
    {"3x2x24 no weight, none",  {3, 2, 24},     {1e-6, 0, LIGER_CAST_NONE},  .flags = NO_WEIGHT},
    {"3x2x24 no shift",         {3, 2, 24},     {1e-6, 0, LIGER_CAST_GEMMA}, .flags = NO_SHIFT},
    {"3x2x24 no rstd",          {3, 2, 24},     {1e-6, 0, LIGER_CAST_LLAMA}, .flags = NO_RSTD},
    {"3x2x24 only dx",          {3, 2, 24},     {1e-6, 0, LIGER_CAST_LLAMA}, .flags = NO_PARAMETERS},
    {"3x2x24 only parameters",  {3, 2, 24},     {1e-6, 1, LIGER_CAST_LLAMA}, .flags = NO_DX},
    {"1x9x40 vectors",          {1, 9, 40},     {1e-6, 0, LIGER_CAST_LLAMA}, .flags = VECTORS},
    {"1x1x1",                   {1, 1, 1},      {1e-6, 0, LIGER_CAST_LLAMA}},
    {"7x1x16",                  {7, 1, 16},     {1e-6, 0, LIGER_CAST_LLAMA}},
    {"90x1x17",                 {90, 1, 17},    {1e-6, 0, LIGER_CAST_GEMMA}},
    {"2x75x40",                 {2, 75, 40},    {1e-6, 0, LIGER_CAST_LLAMA}},
    {"1x301x64",                {1, 301, 64},   {1e-6, 0, LIGER_CAST_GEMMA}},
    {"3x70x1024",               {3, 70, 1024},  {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"700x3x136",               {700, 3, 136},  {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"5x401x264",               {5, 401, 264},  {1e-6, 1, LIGER_CAST_GEMMA}, .large = true},
    {"2x6x5160",               {2, 6, 5160},   {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"2x4x9000",               {2, 4, 9000},   {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"2x9x8192",                {2, 9, 8192},   {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"2x5x20000",               {2, 5, 20000},  {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"1x3x70001",               {1, 3, 70001},  {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"no rows",                 {2, 0, 33},     {1e-6, 0, LIGER_CAST_LLAMA}, .edge = true},
    {"no groups",               {0, 3, 33},     {1e-6, 0, LIGER_CAST_LLAMA}, .edge = true},
};
static const struct op_case bench[] = {
    {"2x1024x1024",  {2, 1024, 1024}, {1e-6, 0, LIGER_CAST_LLAMA}},
    {"8x2048x4096",  {8, 2048, 4096}, {1e-6, 0, LIGER_CAST_LLAMA}},
};
/* clang-format on */

static int64_t rows_of(const struct op_case *c) { return c->size[GROUPS] * c->size[GROUP_ROWS]; }

static struct tensor_spec matrix(const struct op_case *c, const char *name, enum tensor_role role, uint32_t ranges) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_T,
                                .gaps = true,
                                .specials = true,
                                .ndim = 3,
                                .shape = {c->size[GROUPS], c->size[GROUP_ROWS], c->size[COLS]},
                                .ranges = ranges,
                                .huge = 0x1p55}; /* the squares of a row */
}

/* [groups, cols], or [cols]. */
static struct tensor_spec modulation(const struct op_case *c, const char *name, enum tensor_role role) {
    struct tensor_spec spec = {.name = name,
                               .role = role,
                               .kind = KIND_WEIGHT,
                               .specials = true,
                               .ndim = 2,
                               .shape = {c->size[GROUPS], c->size[COLS]}};
    if (c->flags & VECTORS) spec.ndim = 1, spec.shape[0] = c->size[COLS];
    return spec;
}
static struct tensor_spec rstd_of(const struct op_case *c, enum tensor_role role) {
    return (struct tensor_spec){.name = "rstd", .role = role, .kind = KIND_F32, .ndim = 1, .shape = {rows_of(c)}};
}

static struct modulated_ref problem(const struct op_case *c, const struct op_types *types, const double *x,
                                    const double *weight, const double *scale, const double *shift) {
    return (struct modulated_ref){.norm = {.rows = rows_of(c),
                                           .cols = c->size[COLS],
                                           .types = *types,
                                           .x = x,
                                           .weight = weight,
                                           .casting = (int)c->scalar[CASTING],
                                           .epsilon = (float)c->scalar[EPSILON],
                                           .offset = (float)c->scalar[OFFSET]},
                                  .group_rows = c->size[GROUP_ROWS] ? c->size[GROUP_ROWS] : 1,
                                  .scale = scale,
                                  .shift = shift};
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { X, WEIGHT, SCALE, SHIFT, Y, RSTD, FORWARD_TENSORS };

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const bool none = c->scalar[CASTING] == LIGER_CAST_NONE;
    spec[X] = matrix(c, "x", ROLE_IN, OP_EVERY_RANGE);
    spec[WEIGHT] = op_parameter("weight", ROLE_IN, c->size[COLS], c->flags & NO_WEIGHT);
    spec[SCALE] = modulation(c, "scale", ROLE_IN);
    spec[SHIFT] = modulation(c, "shift", ROLE_IN);
    spec[SHIFT].absent = c->flags & NO_SHIFT;
    spec[Y] = matrix(c, "y", ROLE_OUT, 0);
    spec[Y].relative = 1.01, spec[Y].absolute = 6 + (double)c->size[COLS] / 32, spec[Y].inner = none ? 2 : 1;
    spec[Y].steps = 4; /* a normal below the normal numbers is rounded in steps, which weight and scale multiply */
    spec[RSTD] = rstd_of(c, ROLE_OUT);
    spec[RSTD].absent = c->flags & NO_RSTD;
    spec[RSTD].relative = 3 + (double)c->size[COLS] / 32, spec[RSTD].inner = none;
}

OP_DOOR_SCALARS(modulated_rms_norm_forward, "epsilon", "offset", "casting")

OP_EVALUATED(forward, struct modulated_ref, problem(c, types, t[X], t[WEIGHT], t[SCALE], t[SHIFT]),
             modulated_ref_forward, modulated_naive_forward, t[Y], t[RSTD])

static void magnitudes_forward(const struct op_case *c, const struct op_types *types, double *const *t,
                               double *magnitude) {
    (void)types;
    for (int64_t i = 0; i < rows_of(c) * c->size[COLS]; i++) {
        const double shift =
            t[SHIFT] ? t[SHIFT][i / c->size[COLS] / c->size[GROUP_ROWS] * c->size[COLS] + i % c->size[COLS]] : 0;
        op_raise(&magnitude[Y], fabs(t[Y][i] - shift) + fabs(shift));
    }
}

static const struct op_provocation provocations[] = {
    {"groups that do not divide",
     OP_SHAPE(SCALE, 0, 4),
     LIGER_ERR_SHAPE,
     {"scale has 4 rows", "x has 6, which are not as many equal groups"}},
};

const struct op_cases modulated_rms_norm_forward_cases = {
    .name = "modulated_rms_norm_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .call = call_modulated_rms_norm_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .magnitudes = magnitudes_forward,
    .no_loss = OP_IS_FORWARD,
    OP_PROVOCATIONS(provocations),
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

enum { DY, BX, BSCALE, BWEIGHT, BRSTD, DX, DWEIGHT, DSCALE, DSHIFT, BACKWARD_TENSORS };

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    const double cols = (double)c->size[COLS], rows = (double)rows_of(c), group = (double)c->size[GROUP_ROWS];
    const bool llama = c->scalar[CASTING] == LIGER_CAST_LLAMA, none_wanted = c->flags & NO_PARAMETERS;
    spec[DY] = matrix(c, "dy", ROLE_IN, 1u << RANGE_HUGE | 1u << RANGE_OFFSET);
    spec[BX] = matrix(c, "x", ROLE_IN, OP_EVERY_RANGE);
    spec[BWEIGHT] = op_parameter("weight", ROLE_IN, c->size[COLS], c->flags & NO_WEIGHT);
    spec[BSCALE] = modulation(c, "scale", ROLE_IN);
    spec[BRSTD] = rstd_of(c, ROLE_IN);
    spec[DX] = matrix(c, "dx", ROLE_OUT, 0);
    spec[DX].absent = c->flags & NO_DX;
    spec[DX].relative = 1, spec[DX].absolute = 10 + cols / 16;
    spec[DWEIGHT] = op_parameter("dweight", ROLE_OUT, c->size[COLS], none_wanted);
    if (c->flags & NO_WEIGHT) spec[DWEIGHT].kind = KIND_F32;
    spec[DWEIGHT].relative = 1, spec[DWEIGHT].absolute = 10 + rows / 8, spec[DWEIGHT].inner = llama ? 2 : 0;
    spec[DSCALE] = modulation(c, "dscale", ROLE_OUT);
    spec[DSCALE].absent = none_wanted;
    spec[DSCALE].relative = 1, spec[DSCALE].absolute = 8 + group / 8, spec[DSCALE].inner = 2;
    spec[DSHIFT] = modulation(c, "dshift", ROLE_OUT);
    spec[DSHIFT].absent = none_wanted;
    spec[DSHIFT].relative = 1, spec[DSHIFT].absolute = 8 + group / 8;
}

/* rstd belongs to x. */
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t r = 0; r < rows_of(c); r++) t[BRSTD][r] = norm_rstd(c, t[BX] + r * c->size[COLS], c->size[COLS], 1);
}

OP_DOOR_SCALARS(modulated_rms_norm_backward, NULL, "offset", "casting")
OP_DOOR_WORKSPACE(modulated_rms_norm_backward)

typedef void backward_of(const struct modulated_ref *, const double *, const double *, double *, double *, double *,
                         double *, double *);
static void evaluate_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                              backward_of *backward) {
    const struct modulated_ref p = problem(c, types, t[BX], t[BWEIGHT], t[BSCALE], NULL);
    double *d = calloc((size_t)(rows_of(c) * c->size[COLS]) + 1, sizeof *d);
    for (int64_t i = 0; t[DSCALE] && i < c->size[GROUPS] * c->size[COLS]; i++) t[DSCALE][i] = t[DSHIFT][i] = 0;
    if (d) backward(&p, t[DY], t[BRSTD], d, t[DX], t[DWEIGHT], t[DSCALE], t[DSHIFT]);
    free(d);
}
static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate_backward(c, types, t, modulated_ref_backward);
}
static void naive_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    evaluate_backward(c, types, t, modulated_naive_backward);
}

/* dx is a difference of two terms: its error follows the larger one. Sums over rows may cancel too: what they are relative to
 * is the root of their squares, or a large result. */
static void magnitudes_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                double *magnitude) {
    const int64_t cols = c->size[COLS];
    (void)types;
    for (int64_t i = 0; i < rows_of(c) * cols; i++) {
        const int64_t at = i / cols / c->size[GROUP_ROWS] * cols + i % cols;
        const double weight = t[BWEIGHT] ? fabs(t[BWEIGHT][i % cols] + (float)c->scalar[OFFSET]) : 1;
        const double scale = fabs(1 + t[BSCALE][at]), dy = fabs(t[DY][i]), normal = fabs(t[BX][i] * t[BRSTD][i / cols]);
        const double terms[] = {t[BRSTD][i / cols] * scale * weight * dy, dy * scale * normal, dy * normal * weight,
                                dy};
        for (int k = 0; k < 4; k++) op_raise(&magnitude[DX + k], terms[k]);
    }
    const int64_t count[] = {c->size[COLS], c->size[GROUPS] * c->size[COLS], c->size[GROUPS] * c->size[COLS]};
    for (int k = DWEIGHT; k <= DSHIFT; k++) {
        magnitude[k] *= sqrt((double)(k == DWEIGHT ? rows_of(c) : c->size[GROUP_ROWS]));
        for (int64_t i = 0; t[k] && i < count[k - DWEIGHT]; i++) op_raise(&magnitude[k], fabs(t[k][i]));
    }
}

static void forward_of(const void *p, double *y) { modulated_ref_forward(p, y, NULL); }
static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct modulated_ref p = problem(c, types, t[BX], t[BWEIGHT], t[BSCALE], NULL);
    return op_loss(rows_of(c) * c->size[COLS], t[DY], forward_of, &p);
}

static const struct op_provocation backward_provocations[] = {
    {"groups that do not divide",
     OP_SHAPE(BSCALE, 0, 4),
     LIGER_ERR_SHAPE,
     {"scale has 4 rows", "x has 6, which are not as many equal groups"}},
};
static const char *inner_roundings(struct op_run *run) {
    return norm_inner_roundings(run, &(struct norm_tensors){DY, BX, BWEIGHT, BRSTD, BSCALE, DWEIGHT, 2});
}
static const struct op_property backward_properties[] = {{"inner roundings", inner_roundings}};

static const struct op_gradient gradients[] = {{DX, BX}, {DWEIGHT, BWEIGHT}, {DSCALE, BSCALE}};

const struct op_cases modulated_rms_norm_backward_cases = {
    .name = "modulated_rms_norm_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare_backward,
    .call = call_modulated_rms_norm_backward,
    .workspace = workspace_modulated_rms_norm_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes_backward,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_PROPERTIES(backward_properties),
    OP_PROVOCATIONS(backward_provocations),
    OP_BENCH(bench),
};
