/* rms_norm_cases.c - what the drivers need to know about RMSNorm and add+RMSNorm.
 *
 * Budgets. y: one rounding at the store; llama rounds x·rstd to T before, which may fall on the other side of a tie (one
 * ulp is 2 u), none rounds rstd and the weight likewise. The sum of squares is a chain of cols/16 additions on the
 * narrowest machine and its error is halved by the root: cols/32 u(f32), and a handful for the rest. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "liger/ops/rms_norm/rms_norm.h"
#include "liger/ops/rms_norm/rms_norm_ref.h"
#include "tests/harness/norm_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"
#include "tests/harness/rows_cases.h"

enum { OFFSET = NORM_SCALARS, CASTING };
enum { NO_WEIGHT = 1, NO_RSTD = 2, NO_DX = 4, NO_DWEIGHT = 8, NO_DSUM = 16 };

/* clang-format off */
static const struct op_case cases[] = {
    {"5x33 llama",           {0, 5, 33},     {1e-5, 0, LIGER_CAST_LLAMA}},
    {"5x33 gemma",           {0, 5, 33},     {1e-6, 1, LIGER_CAST_GEMMA}},
    {"5x33 none",            {0, 5, 33},     {1e-6, 0.1, LIGER_CAST_NONE}},
    {"4x40 none, no weight", {0, 4, 40},     {1e-6, 0, LIGER_CAST_NONE}, .flags = NO_WEIGHT},
    {"3x24 no weight",       {0, 3, 24},     {1e-6, 0, LIGER_CAST_LLAMA}, .flags = NO_WEIGHT},
    {"3x24 no rstd",         {0, 3, 24},     {1e-6, 0, LIGER_CAST_GEMMA}, .flags = NO_RSTD},
    {"3x24 only dx",         {0, 3, 24},     {1e-6, 0, LIGER_CAST_GEMMA}, .flags = NO_DWEIGHT},
    {"3x24 only dweight",    {0, 3, 24},     {1e-6, 1, LIGER_CAST_LLAMA}, .flags = NO_DX},
    {"3x24 no dsum",         {0, 3, 24},     {1e-6, 0, LIGER_CAST_LLAMA}, .flags = NO_DSUM},
    {"3x24 epsilon 0",       {0, 3, 24},     {0, 0, LIGER_CAST_LLAMA}},
    {"1-d of 19",            {0, -1, 19},    {1e-6, 0, LIGER_CAST_GEMMA}},
    {"3-d 2x3x20",           {2, 3, 20},     {1e-6, 0, LIGER_CAST_LLAMA}},
    {"3-d 3x5x130",          {3, 5, 130},    {1e-6, 1, LIGER_CAST_GEMMA}},
    {"1x1",                  {0, 1, 1},      {1e-6, 0, LIGER_CAST_LLAMA}},
    {"7x3",                  {0, 7, 3},      {1e-6, 0, LIGER_CAST_GEMMA}},
    {"4x15",                 {0, 4, 15},     {1e-6, 0, LIGER_CAST_LLAMA}},
    {"4x16",                 {0, 4, 16},     {1e-6, 0, LIGER_CAST_LLAMA}},
    {"4x17",                 {0, 4, 17},     {1e-6, 0, LIGER_CAST_LLAMA}},
    {"9x64",                 {0, 9, 64},     {1e-6, 0, LIGER_CAST_GEMMA}},
    {"9x127",                {0, 9, 127},    {1e-6, 0, LIGER_CAST_GEMMA}},
    {"300x40",               {0, 300, 40},   {1e-6, 0, LIGER_CAST_GEMMA}},
    {"141x520",              {0, 141, 520},  {1e-6, 1, LIGER_CAST_GEMMA}},
    {"70x1024",              {0, 70, 1024},  {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"37x4099",              {0, 37, 4099},  {1e-6, 1, LIGER_CAST_GEMMA}, .large = true},
    {"2100x129",             {0, 2100, 129}, {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"601x520",              {0, 601, 520},  {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"2100x520",             {0, 2100, 520}, {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"401x1544",             {0, 401, 1544}, {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"281x3080",             {0, 281, 3080}, {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"11x5160",              {0, 11, 5160},  {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"7x9000",               {0, 7, 9000},   {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"19x16384",             {0, 19, 16384}, {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"3x70001",              {0, 3, 70001},  {1e-6, 0, LIGER_CAST_GEMMA}, .large = true},
    {"2x262147",             {0, 2, 262147}, {1e-6, 0, LIGER_CAST_LLAMA}, .large = true},
    {"no rows",              {0, 0, 33},     {1e-6, 0, LIGER_CAST_LLAMA}, .edge = true},
    {"no rows, 3-d",         {2, 0, 33},     {1e-6, 0, LIGER_CAST_GEMMA}, .edge = true},
};
static const struct op_case bench[] = {
    {"2048x4096",   {0, 2048, 4096},  {1e-6, 0, LIGER_CAST_LLAMA}},
    {"4096x4096",   {0, 4096, 4096},  {1e-6, 0, LIGER_CAST_LLAMA}},
    {"16384x4096",  {0, 16384, 4096}, {1e-6, 0, LIGER_CAST_LLAMA}},
};
/* clang-format on */

static struct rms_norm_ref problem(const struct op_case *c, const struct op_types *types, const double *x,
                                   const double *weight) {
    return (struct rms_norm_ref){.rows = rows_of(c),
                                 .cols = c->size[COLS],
                                 .types = *types,
                                 .x = x,
                                 .weight = weight,
                                 .casting = (int)c->scalar[CASTING],
                                 .epsilon = (float)c->scalar[EPSILON],
                                 .offset = (float)c->scalar[OFFSET]};
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { X, WEIGHT, Y, RSTD, RESIDUAL, SUM, FORWARD_TENSORS }; /* the last two: add_rms_norm only */

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const bool none = c->scalar[CASTING] == LIGER_CAST_NONE, llama = c->scalar[CASTING] == LIGER_CAST_LLAMA;
    const bool weighted = !(c->flags & NO_WEIGHT);
    spec[X] = norm_input(c, "x", OP_EVERY_RANGE);
    spec[WEIGHT] = op_parameter("weight", ROLE_IN, c->size[COLS], !weighted);
    spec[Y] = rows_tensor(c, "y", ROLE_OUT);
    spec[Y].relative = 1 + (none ? 2 : 0) + (weighted && (none || llama) ? 2 : 0);
    spec[Y].absolute = 4 + (double)c->size[COLS] / 32;
    spec[RSTD] = rows_statistic(c, "rstd", ROLE_OUT, c->flags & NO_RSTD);
    spec[RSTD].relative = 3 + (double)c->size[COLS] / 32;
    spec[RSTD].inner = none;
}

static void describe_add_forward(const struct op_case *c, struct tensor_spec *spec) {
    describe_forward(c, spec);
    spec[RESIDUAL] = norm_input(c, "residual", OP_EVERY_RANGE);
    spec[SUM] = rows_tensor(c, "sum", ROLE_OUT); /* budget 0: x + residual rounded to T, nothing else */
}

OP_DOOR_SCALARS(rms_norm_forward, "epsilon", "offset", "casting")
OP_DOOR_SCALARS(add_rms_norm_forward, "epsilon", "offset", "casting")

static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct rms_norm_ref p = problem(c, types, t[X], t[WEIGHT]);
    rms_norm_ref_forward(&p, t[Y], t[RSTD]);
}

static void reference_add_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t elements = elements_of(c);
    for (int64_t i = 0; i < elements; i++) t[SUM][i] = op_round(types->t, t[X][i] + t[RESIDUAL][i]);
    const struct rms_norm_ref p = problem(c, types, t[SUM], t[WEIGHT]);
    rms_norm_ref_forward(&p, t[Y], t[RSTD]);
}

static void naive_add_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t elements = elements_of(c);
    for (int64_t i = 0; i < elements; i++) t[SUM][i] = (float)(t[X][i] + t[RESIDUAL][i]);
    const struct rms_norm_ref p = problem(c, types, t[SUM], t[WEIGHT]);
    rms_norm_naive_forward(&p, t[Y], t[RSTD]);
}

static void naive_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct rms_norm_ref p = problem(c, types, t[X], t[WEIGHT]);
    rms_norm_naive_forward(&p, t[Y], t[RSTD]);
}

/* A row times a power of two gives the same y, if epsilon is 0: every rounding moves with it. */
static const char *scale_invariance(struct op_run *run) {
    const int64_t elements = run->count[X];
    double *first = run->t[RSTD]; /* free for our use: read no more */
    if (run->c.scalar[EPSILON] != 0 || first == NULL)
        return op_run_not_applicable(run, "scale invariance: epsilon is not 0, or rstd is absent");
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    double before = 0, after = 0;
    for (int64_t i = 0; i < elements; i++) before += run->t[Y][i] * (double)(i % 61 + 1);
    for (int64_t i = 0; i < elements; i++) run->t[X][i] *= 4;
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    for (int64_t i = 0; i < elements; i++) after += run->t[Y][i] * (double)(i % 61 + 1);
    return before == after ? NULL
                           : op_run_text(run, "the checksum of y is %.17g, of y for 4x it is %.17g", before, after);
}

static const struct op_property forward_properties[] = {{"scale invariance", scale_invariance}};

const struct op_cases rms_norm_forward_cases = {
    .name = "rms_norm_forward",
    .tensor_count = RSTD + 1,
    .describe = describe_forward,
    OP_CASES(cases),
    .call = call_rms_norm_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .no_loss = OP_IS_FORWARD,
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
};

const struct op_cases add_rms_norm_forward_cases = {
    .name = "add_rms_norm_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_add_forward,
    OP_CASES(cases),
    .call = call_add_rms_norm_forward,
    .reference = reference_add_forward,
    .naive = naive_add_forward,
    .no_loss = OP_IS_FORWARD,
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

enum { DY, BX, BWEIGHT, BRSTD, DX, DWEIGHT, DSUM, BACKWARD_TENSORS }; /* dsum: add_rms_norm only; its sum is BX */

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    const double cols = (double)c->size[COLS], rows = (double)rows_of(c);
    const bool llama = c->scalar[CASTING] == LIGER_CAST_LLAMA, weighted = !(c->flags & NO_WEIGHT);
    spec[DY] = norm_input(c, "dy", 1u << RANGE_HUGE | 1u << RANGE_OFFSET);
    spec[BX] = norm_input(c, "x", OP_EVERY_RANGE);
    spec[BWEIGHT] = op_parameter("weight", ROLE_IN, c->size[COLS], !weighted);
    spec[BRSTD] = rows_statistic(c, "rstd", ROLE_IN, false);
    spec[DX] = rows_tensor(c, "dx", ROLE_OUT);
    spec[DX].absent = c->flags & NO_DX;
    spec[DX].relative = 1;
    spec[DX].absolute = 8 + cols / 16;
    spec[DWEIGHT] = op_parameter("dweight", ROLE_OUT, c->size[COLS], c->flags & NO_DWEIGHT);
    if (!weighted) spec[DWEIGHT].kind = KIND_F32;
    spec[DWEIGHT].relative = 1;
    spec[DWEIGHT].absolute = 8 + rows / 8;
    spec[DWEIGHT].inner = llama ? 2 : 0;
}

static void describe_add_backward(const struct op_case *c, struct tensor_spec *spec) {
    describe_backward(c, spec);
    spec[BX].name = "sum";
    spec[DSUM] = rows_tensor(c, "dsum", ROLE_IN);
    spec[DSUM].absent = c->flags & NO_DSUM;
}

/* rstd belongs to x. */
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t r = 0; r < rows_of(c); r++) t[BRSTD][r] = norm_rstd(c, t[BX] + r * c->size[COLS], c->size[COLS], 1);
}

OP_DOOR_SCALARS(rms_norm_backward, NULL, "offset", "casting")
OP_DOOR_WORKSPACE(rms_norm_backward)
OP_DOOR_SCALARS(add_rms_norm_backward, NULL, "offset", "casting")
OP_DOOR_WORKSPACE(add_rms_norm_backward)

OP_EVALUATED(backward, struct rms_norm_ref, problem(c, types, t[BX], t[BWEIGHT]), rms_norm_ref_backward,
             rms_norm_naive_backward, t[DY], NULL, t[BRSTD], t[DX], t[DWEIGHT])

OP_EVALUATED(add_backward, struct rms_norm_ref, problem(c, types, t[BX], t[BWEIGHT]), rms_norm_ref_backward,
             rms_norm_naive_backward, t[DY], t[DSUM], t[BRSTD], t[DX], t[DWEIGHT])

/* dx is a difference of two terms: its error follows the larger one. */
static void magnitudes_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                double *magnitude) {
    const struct rms_norm_ref p = problem(c, types, t[BX], t[BWEIGHT]);
    for (int64_t i = 0; i < p.rows * p.cols; i++) {
        const double scale = p.weight ? p.weight[i % p.cols] + p.offset : 1;
        op_raise(&magnitude[DX], fabs(t[BRSTD][i / p.cols] * scale * t[DY][i]));
    }
}

static void forward_of(const void *p, double *y) { rms_norm_ref_forward(p, y, NULL); }
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct rms_norm_ref p = problem(c, types, t[BX], t[BWEIGHT]);
    return op_loss(elements_of(c), t[DY], forward_of, &p);
}

/* And dsum · x: the gradient of the sum is that of both addends. */
static double loss_add_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    double total = loss_backward(c, types, t);
    for (int64_t i = 0; t[DSUM] && i < elements_of(c); i++) total += t[DSUM][i] * t[BX][i];
    return total;
}

static void scale_all(double *values, int64_t count, int power) {
    for (int64_t i = 0; values && i < count; i++) values[i] = ldexp(values[i], power);
}

/* x · 2^k with the rstd that belongs to it moves dx by 2^-k, and dweight not at all: inputs and results keep to the range of
 * f32, so no step in between may leave it. */
static const char *far_magnitudes(struct op_run *run) {
    static const int powers[] = {-50, 50};
    const int64_t elements = run->count[DX];
    const char *wrong = NULL;
    if (run->t[DX] == NULL || run->types.t == LIGER_F16) return NULL; /* f16 has no such values */
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    double *dx = malloc((size_t)(elements + run->c.size[COLS]) * sizeof *dx), *dweight = dx ? dx + elements : NULL;
    if (dx == NULL) return "no memory";
    memcpy(dx, run->t[DX], (size_t)elements * sizeof *dx);
    if (run->t[DWEIGHT]) memcpy(dweight, run->t[DWEIGHT], (size_t)run->c.size[COLS] * sizeof *dx);
    for (int k = 0; k < OP_COUNT(powers) && !wrong; k++) {
        const int power = k > 0 ? powers[k] - powers[k - 1] : powers[k];
        scale_all(run->t[BX], run->count[BX], power);
        scale_all(run->t[BRSTD], run->count[BRSTD], -power);
        scale_all(run->t[DSUM], run->count[DSUM], -power);
        if (op_run_call(run) != LIGER_OK) wrong = liger_last_error();
        for (int64_t i = 0; i < elements && !wrong; i++)
            if (run->t[DX][i] != ldexp(dx[i], -powers[k]))
                wrong = op_run_text(run, "dx[%lld] is %.9g for x, %.9g for x times 2^%d", (long long)i, dx[i],
                                    run->t[DX][i], powers[k]);
        for (int64_t c = 0; run->t[DWEIGHT] && c < run->c.size[COLS] && !wrong; c++)
            if (run->t[DWEIGHT][c] != dweight[c]) wrong = "dweight moves with x";
    }
    free(dx);
    return wrong;
}

static const char *inner_roundings(struct op_run *run) {
    return norm_inner_roundings(run, &(struct norm_tensors){DY, BX, BWEIGHT, BRSTD, -1, DWEIGHT, 1});
}

static const struct op_property backward_properties[] = {{"x near the ends of f32", far_magnitudes},
                                                         {"inner roundings", inner_roundings}};

static const struct op_gradient gradients[] = {{DX, BX}, {DWEIGHT, BWEIGHT}};

const struct op_cases rms_norm_backward_cases = {
    .name = "rms_norm_backward",
    .tensor_count = DWEIGHT + 1,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare_backward,
    .call = call_rms_norm_backward,
    .workspace = workspace_rms_norm_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes_backward,
    .loss = loss_backward,
    OP_GRADIENTS(gradients),
    OP_PROPERTIES(backward_properties),
    OP_BENCH(bench),
};

const struct op_cases add_rms_norm_backward_cases = {
    .name = "add_rms_norm_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_add_backward,
    OP_CASES(cases),
    .prepare = prepare_backward,
    .call = call_add_rms_norm_backward,
    .workspace = workspace_add_rms_norm_backward,
    .reference = reference_add_backward,
    .naive = naive_add_backward,
    .magnitudes = magnitudes_backward,
    .loss = loss_add_backward,
    OP_GRADIENTS(gradients),
    OP_PROPERTIES(backward_properties),
    OP_BENCH(bench),
};
