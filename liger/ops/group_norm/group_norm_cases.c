/* group_norm_cases.c - what the drivers need to know about GroupNorm.
 *
 * Budgets as those of LayerNorm: y is rounded once; the mean is a chain of cols/16 additions on the narrowest machine, and its
 * error a part of the largest |x|. The sums of a channel run over samples and plane. */
#include <math.h>
#include <stdlib.h>

#include "liger/ops/group_norm/group_norm.h"
#include "liger/ops/group_norm/group_norm_ref.h"
#include "tests/harness/norm_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { BATCH, CHANNELS, HEIGHT, WIDTH, GROUPS }; /* height 0: three dimensions; width 0: two; -1: nothing */
enum { NO_STATISTICS = 1, NO_DX = 2, NO_DWEIGHT = 4, NO_DBIAS = 8 };

/* clang-format off */
static const struct op_case cases[] = {
    {"3x6x5x7 by 3",          {3, 6, 5, 7, 3},         {1e-5}},
    {"2x8x40 by 4",           {2, 8, 0, 40, 4},        {1e-6}, .flags = NO_STATISTICS},
    {"2x6x4x4, one group",    {2, 6, 4, 4, 1},         {1e-6}, .flags = NO_DX},
    {"2x6x4x4 by 6",          {2, 6, 4, 4, 6},         {1e-6}, .flags = NO_DBIAS},
    {"2x6x4x4 only dx",       {2, 6, 4, 4, 2},         {1e-6}, .flags = NO_DWEIGHT | NO_DBIAS},
    {"2x6x4x4 only dbias",    {2, 6, 4, 4, 2},         {1e-6}, .flags = NO_DX | NO_DWEIGHT},
    {"3x4x12 epsilon 0",      {3, 4, 0, 12, 2},        {0}},
    {"5x24, two dimensions",  {5, 24, 0, 0, 3},        {1e-6}},
    {"1x1x1",                 {1, 1, 0, 1, 1},         {1e-6}},
    {"70x3x1 by 3",           {70, 3, 0, 1, 3},        {1e-6}},
    {"40x32x3 by 8",          {40, 32, 0, 3, 8},       {1e-6}},
    {"5x16x14x14 by 4",       {5, 16, 14, 14, 4},      {1e-6}},
    {"2x4x9x113 by 2",        {2, 4, 9, 113, 2},       {1e-6}},
    {"2x10x16x16 by 5",       {2, 10, 16, 16, 5},      {1e-6}},
    {"300x4x8 by 2",          {300, 4, 0, 8, 2},       {1e-6}},
    {"1x64x5 by 1",           {1, 64, 0, 5, 1},        {1e-6}},
    {"70x12x4 by 3",          {70, 12, 0, 4, 3},       {1e-6}},
    {"33x24x1 by 2",          {33, 24, 0, 1, 2},       {1e-6}},
    {"21x9x5 by 3, no dx",    {21, 9, 0, 5, 3},        {1e-6}, .flags = NO_DX},
    {"1x2x16400 by 1",        {1, 2, 0, 16400, 1},     {1e-6}},
    {"17x8x16x32 by 2",       {17, 8, 16, 32, 2},      {1e-6}, .large = true},
    {"2x4x16384 by 2",        {2, 4, 0, 16384, 2},     {1e-6}, .large = true},
    {"1x3x70001 by 1",        {1, 3, 0, 70001, 1},     {1e-6}, .large = true},
    {"2x2x301x301 by 2",      {2, 2, 301, 301, 2},     {1e-6}, .large = true},
    {"1x1280x8x8 by 1",       {1, 1280, 8, 8, 1},      {1e-6}, .large = true},
    {"1x4x256x300 by 2",      {1, 4, 256, 300, 2},     {1e-6}, .large = true},
    {"700x32x5 by 4",         {700, 32, 0, 5, 4},      {1e-6}, .large = true},
    {"no samples",            {0, 6, 0, 5, 3},         {1e-6}, .edge = true},
    {"planes of nothing",     {2, 6, 3, -1, 3},        {1e-6}, .edge = true, .flags = NO_STATISTICS},
};
static const struct op_case bench[] = {
    {"2x320x64x64 by 32",     {2, 320, 64, 64, 32},    {1e-6}},
    {"16x512x64x64 by 32",    {16, 512, 64, 64, 32},   {1e-6}, .large = true},
    {"1x128x512x512 by 32",   {1, 128, 512, 512, 32},  {1e-6}, .large = true},
};

static const struct op_provocation provocations[] = {
    {"groups that do not divide", OP_SIZE(GROUPS, 4),    LIGER_ERR_SHAPE, {"x has 6 channels", "4 groups"}},
    {"one dimension",             OP_VECTOR(0, 6),       LIGER_ERR_SHAPE, {"x has 1 dimensions", "2 or more"}},
    {"no channels",               OP_SHAPE(0, 1, 0),     LIGER_ERR_SHAPE, {"x has no channels"}},
};
/* clang-format on */

static int64_t extent(int64_t size) { return size < 0 ? 0 : size; }
static int64_t spatial_of(const struct op_case *c) {
    return (c->size[HEIGHT] ? c->size[HEIGHT] : 1) * (c->size[WIDTH] ? extent(c->size[WIDTH]) : 1);
}
static int64_t rows_of(const struct op_case *c) { return c->size[BATCH] * c->size[GROUPS]; }
static int64_t cols_of(const struct op_case *c) { return c->size[CHANNELS] / c->size[GROUPS] * spatial_of(c); }

static struct tensor_spec image(const struct op_case *c, const char *name, enum tensor_role role) {
    struct tensor_spec spec = {.name = name,
                               .role = role,
                               .kind = KIND_T,
                               .ndim = 2,
                               .shape = {c->size[BATCH], c->size[CHANNELS]},
                               .specials = role == ROLE_IN};
    if (c->size[HEIGHT]) spec.shape[spec.ndim++] = c->size[HEIGHT];
    if (c->size[WIDTH]) spec.shape[spec.ndim++] = extent(c->size[WIDTH]);
    return spec;
}

static struct tensor_spec input(const struct op_case *c, const char *name, uint32_t ranges) {
    struct tensor_spec spec = image(c, name, ROLE_IN);
    norm_ranges(c, &spec, ranges, NORM_OF_SQUARES);
    return spec;
}

static struct tensor_spec statistics(const struct op_case *c, enum tensor_role role) {
    return (struct tensor_spec){
        .name = "statistics", .role = role, .kind = KIND_F32, .ndim = 2, .shape = {2, rows_of(c)}};
}

static struct group_norm_ref problem(const struct op_case *c, const double *x, const double *weight,
                                     const double *bias) {
    return (struct group_norm_ref){.batch = c->size[BATCH],
                                   .channels = c->size[CHANNELS],
                                   .spatial = spatial_of(c),
                                   .groups = c->size[GROUPS],
                                   .epsilon = (float)c->scalar[EPSILON],
                                   .x = x,
                                   .weight = weight,
                                   .bias = bias};
}

static struct norm_moments moments_of(const struct op_case *c, const double *x, int64_t r) {
    return norm_moments(c, x + r * cols_of(c), cols_of(c));
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { X, WEIGHT, BIAS, Y, STATISTICS, FORWARD_TENSORS };

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const double cols = (double)cols_of(c);
    spec[X] = input(c, "x", OP_EVERY_RANGE);
    spec[WEIGHT] = op_parameter("weight", ROLE_IN, c->size[CHANNELS], false);
    spec[BIAS] = op_parameter("bias", ROLE_IN, c->size[CHANNELS], false);
    spec[BIAS].values = VALUES_NORMAL;
    spec[Y] = image(c, "y", ROLE_OUT);
    spec[Y].relative = 1;
    spec[Y].absolute = 8 + cols / 16;
    spec[STATISTICS] = statistics(c, ROLE_OUT);
    spec[STATISTICS].absent = c->flags & NO_STATISTICS;
    spec[STATISTICS].relative = 4 + cols / 16;
    spec[STATISTICS].absolute = 2 + cols / 16;
    spec[STATISTICS].steps = 1; /* the quotient of a subnormal sum */
}

static void forward_options(const struct op_case *c, void *args) {
    ((liger_group_norm_forward_args *)args)->groups = c->size[GROUPS];
    ((liger_group_norm_forward_args *)args)->epsilon = (float)c->scalar[EPSILON];
}
OP_DOOR(group_norm_forward, forward_options)
OP_DOOR_WORKSPACE(group_norm_forward)

OP_EVALUATED(forward, struct group_norm_ref, problem(c, t[X], t[WEIGHT], t[BIAS]), group_norm_ref_forward,
             group_norm_naive_forward, t[Y], t[STATISTICS])

static void magnitudes_forward(const struct op_case *c, const struct op_types *types, double *const *t,
                               double *magnitude) {
    const int64_t cols = cols_of(c);
    (void)types;
    for (int64_t r = 0; r < rows_of(c); r++) {
        const double rstd = moments_of(c, t[X], r).rstd;
        for (int64_t i = r * cols; i < (r + 1) * cols; i++) {
            const int64_t channel = i / spatial_of(c) % c->size[CHANNELS];
            op_raise(&magnitude[STATISTICS], fabs(t[X][i]));
            op_raise(&magnitude[Y], fabs(t[X][i]) * rstd * fabs(t[WEIGHT][channel]) + fabs(t[BIAS][channel]));
        }
    }
}

static const char *groups_of_one_value(struct op_run *run) {
    return norm_of_one_value(run, X, Y, cols_of(&run->c), BIAS, spatial_of(&run->c));
}

/* The two halves of a group lie apart, and nothing else varies: what its parts say of their means is all of the variance. A
 * budget for long sums would not see it missing. */
static const char *halves_apart(struct op_run *run) {
    const int64_t cols = cols_of(&run->c);
    const double coarse = run->types.t == LIGER_F32 ? 0 : run->types.t == LIGER_F16 ? 0x1p-11 : 0x1p-8;
    const char *wrong = NULL;
    double *right = malloc((size_t)run->count[Y] * sizeof *right + 1);
    if (right == NULL) return "no memory";
    for (int64_t i = 0; i < run->count[X]; i++) run->t[X][i] = i % cols < cols / 2 ? -3 : 3;
    const struct group_norm_ref p = problem(&run->c, run->t[X], run->t[WEIGHT], run->t[BIAS]);
    group_norm_ref_forward(&p, right, NULL);
    if (op_run_call(run) != LIGER_OK) wrong = liger_last_error();
    for (int64_t i = 0; i < run->count[Y] && !wrong; i++) {
        const double budget = coarse * fabs(right[i]) + 0x1p-18 * (3 + fabs(right[i]));
        if (cols > 1 && !(fabs(run->t[Y][i] - right[i]) <= budget))
            wrong = op_run_text(run, "y[%lld] is %.9g, but must be %.9g", (long long)i, run->t[Y][i], right[i]);
    }
    free(right);
    return wrong;
}

static const struct op_property forward_properties[] = {{"groups of one value", groups_of_one_value},
                                                        {"halves apart", halves_apart}};

const struct op_cases group_norm_forward_cases = {
    .name = "group_norm_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .call = call_group_norm_forward,
    .workspace = workspace_group_norm_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .magnitudes = magnitudes_forward,
    .no_loss = OP_IS_FORWARD,
    OP_PROVOCATIONS(provocations),
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

enum { DY, BX, BWEIGHT, BSTATISTICS, DX, DWEIGHT, DBIAS, BACKWARD_TENSORS };

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    const double terms = (double)(c->size[BATCH] * spatial_of(c));
    spec[DY] = input(c, "dy", 1u << RANGE_HUGE | 1u << RANGE_OFFSET);
    spec[BX] = input(c, "x", OP_EVERY_RANGE);
    spec[BWEIGHT] = op_parameter("weight", ROLE_IN, c->size[CHANNELS], false);
    spec[BWEIGHT].specials = false; /* Inf times a sum of both signs, instead of a sum of infinities of both signs */
    spec[BSTATISTICS] = statistics(c, ROLE_IN);
    spec[DX] = image(c, "dx", ROLE_OUT);
    spec[DX].absent = c->flags & NO_DX;
    spec[DX].relative = 1;
    spec[DX].absolute = 8 + (double)cols_of(c) / 16;
    spec[DWEIGHT] = op_parameter("dweight", ROLE_OUT, c->size[CHANNELS], c->flags & NO_DWEIGHT);
    spec[DBIAS] = op_parameter("dbias", ROLE_OUT, c->size[CHANNELS], c->flags & NO_DBIAS);
    for (int i = DWEIGHT; i <= DBIAS; i++) {
        spec[i].relative = 1;
        spec[i].absolute = 8 + sqrt(terms) / 16; /* of what is added up, without its signs */
    }
}

/* The statistics belong to x. */
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t r = 0; r < rows_of(c); r++) {
        const struct norm_moments moments = moments_of(c, t[BX], r);
        t[BSTATISTICS][r] = moments.mean, t[BSTATISTICS][rows_of(c) + r] = moments.rstd;
    }
}

static void backward_options(const struct op_case *c, void *args) {
    ((liger_group_norm_backward_args *)args)->groups = c->size[GROUPS];
}
OP_DOOR(group_norm_backward, backward_options)
OP_DOOR_WORKSPACE(group_norm_backward)

OP_EVALUATED(backward, struct group_norm_ref, problem(c, t[BX], t[BWEIGHT], NULL), group_norm_ref_backward,
             group_norm_naive_backward, t[DY], t[BSTATISTICS], t[DX], t[DWEIGHT], t[DBIAS])

/* dx is a difference of three terms: its error follows the largest one. The sums over a channel may cancel. */
static void magnitudes_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                double *magnitude) {
    const int64_t cols = cols_of(c);
    (void)types;
    for (int64_t r = 0; r < rows_of(c); r++) {
        const double mean = t[BSTATISTICS][r], rstd = t[BSTATISTICS][rows_of(c) + r];
        double largest = 0, normal = 0;
        for (int64_t i = r * cols; i < (r + 1) * cols; i++) {
            op_raise(&largest, fabs(t[DY][i] * t[BWEIGHT][i / spatial_of(c) % c->size[CHANNELS]]));
            op_raise(&normal, fabs(t[BX][i] - mean) * rstd);
        }
        op_raise(&magnitude[DX], rstd * largest * (1 + normal));
    }
    for (int64_t channel = 0; channel < c->size[CHANNELS]; channel++) {
        double weighted = 0, plain = 0;
        for (int64_t b = 0; b < c->size[BATCH]; b++)
            for (int64_t s = 0; s < spatial_of(c); s++) {
                const int64_t i = (b * c->size[CHANNELS] + channel) * spatial_of(c) + s, r = i / cols;
                weighted += fabs(t[DY][i] * (t[BX][i] - t[BSTATISTICS][r]) * t[BSTATISTICS][rows_of(c) + r]);
                plain += fabs(t[DY][i]);
            }
        op_raise(&magnitude[DWEIGHT], weighted);
        op_raise(&magnitude[DBIAS], plain);
    }
}

/* The reference's own statistics, so that their derivatives take part. */
static void forward_of(const void *p, double *y) { group_norm_ref_forward(p, y, NULL); }
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct group_norm_ref p = problem(c, t[BX], t[BWEIGHT], NULL);
    (void)types;
    return op_loss(rows_of(c) * cols_of(c), t[DY], forward_of, &p);
}

static const struct op_gradient gradients[] = {{DX, BX}, {DWEIGHT, BWEIGHT}};

static const struct op_provocation backward_provocations[] = {
    {"groups that do not divide", OP_SIZE(GROUPS, 4), LIGER_ERR_SHAPE, {"x has 6 channels", "4 groups"}},
};

const struct op_cases group_norm_backward_cases = {
    .name = "group_norm_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare_backward,
    .call = call_group_norm_backward,
    .workspace = workspace_group_norm_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes_backward,
    .loss = loss_backward,
    OP_GRADIENTS(gradients),
    OP_PROVOCATIONS(backward_provocations),
    OP_BENCH(bench),
};
