/* layer_norm_cases.c - what the drivers need to know about LayerNorm.
 *
 * Budgets. y: one rounding at the store. The mean is a chain of cols/16 additions on the narrowest machine, and its error
 * is a part of the largest |x|, not of what is left of x after the subtraction: the magnitude of y says so. The variance is
 * such a chain too, its error halved by the root. */
#include <math.h>

#include "liger/ops/layer_norm/layer_norm.h"
#include "liger/ops/layer_norm/layer_norm_ref.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { OUTER, ROWS, COLS }; /* sizes; x is [rows, cols], or [outer, rows, cols] if outer > 0, or [cols] if rows < 0 */
enum { EPSILON };
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
    {"70x1024",           {0, 70, 1024},  {1e-6}, .large = true},
    {"37x4099",           {0, 37, 4099},  {1e-6}, .large = true},
    {"2100x129",          {0, 2100, 129}, {1e-6}, .large = true},
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

static int64_t rows_of(const struct op_case *c) {
    const int64_t rows = c->size[ROWS] < 0 ? 1 : c->size[ROWS];
    return c->size[OUTER] > 0 ? c->size[OUTER] * rows : rows;
}

static struct tensor_spec matrix(const struct op_case *c, const char *name, enum tensor_role role) {
    struct tensor_spec spec = {.name = name, .role = role, .kind = KIND_T, .gaps = true, .specials = true};
    if (c->size[OUTER] > 0) spec.shape[spec.ndim++] = c->size[OUTER];
    if (c->size[ROWS] >= 0) spec.shape[spec.ndim++] = c->size[ROWS];
    spec.shape[spec.ndim++] = c->size[COLS];
    return spec;
}

/* In f32 the squares of a row and their sum must neither overflow nor, where no epsilon is added to them, vanish. */
static struct tensor_spec input(const struct op_case *c, const char *name, uint32_t ranges) {
    const bool alone = c->scalar[EPSILON] == 0;
    struct tensor_spec spec = matrix(c, name, ROLE_IN);
    spec.ranges = alone ? ranges & ~(1u << RANGE_SUBNORMAL) : ranges;
    spec.huge = 0x1p55;
    spec.tiny = alone ? 0x1p-55 : 0;
    return spec;
}

static struct tensor_spec parameter(const struct op_case *c, const char *name, enum tensor_role role, bool absent) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_WEIGHT,
                                .ndim = 1,
                                .shape = {c->size[COLS]},
                                .absent = absent,
                                .specials = role == ROLE_IN};
}

static struct tensor_spec per_row(const struct op_case *c, const char *name, enum tensor_role role) {
    return (struct tensor_spec){.name = name, .role = role, .kind = KIND_F32, .ndim = 1, .shape = {rows_of(c)}};
}

static struct layer_norm_ref problem(const struct op_case *c, const double *x, const double *weight,
                                     const double *bias) {
    return (struct layer_norm_ref){.rows = rows_of(c),
                                   .cols = c->size[COLS],
                                   .epsilon = (float)c->scalar[EPSILON],
                                   .x = x,
                                   .weight = weight,
                                   .bias = bias};
}

static void raise_to(double *most, double value) {
    if (isfinite(value) && value > *most) *most = value;
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { X, WEIGHT, BIAS, Y, MEAN, RSTD, FORWARD_TENSORS };

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const double cols = (double)c->size[COLS];
    spec[X] = input(c, "x", OP_EVERY_RANGE);
    spec[WEIGHT] = parameter(c, "weight", ROLE_IN, c->flags & NO_WEIGHT);
    spec[WEIGHT].values = VALUES_POSITIVE;
    spec[BIAS] = parameter(c, "bias", ROLE_IN, c->flags & NO_BIAS);
    spec[Y] = matrix(c, "y", ROLE_OUT);
    spec[Y].relative = 1;
    spec[Y].absolute = 8 + cols / 16;
    spec[MEAN] = per_row(c, "mean", ROLE_OUT);
    spec[MEAN].absent = c->flags & NO_STATISTICS;
    spec[MEAN].relative = 1; /* the division: subnormal means are rounded to their steps */
    spec[MEAN].absolute = 2 + cols / 16;
    spec[MEAN].steps = 1; /* the quotient of a subnormal sum */
    spec[RSTD] = per_row(c, "rstd", ROLE_OUT);
    spec[RSTD].absent = c->flags & NO_STATISTICS;
    spec[RSTD].relative = 4 + cols / 16;
}

static void forward_options(const struct op_case *c, void *args) {
    ((liger_layer_norm_forward_args *)args)->epsilon = (float)c->scalar[EPSILON];
}
OP_DOOR(layer_norm_forward, forward_options)

static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct layer_norm_ref p = problem(c, t[X], t[WEIGHT], t[BIAS]);
    (void)types;
    layer_norm_ref_forward(&p, t[Y], t[MEAN], t[RSTD]);
}

static void naive_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct layer_norm_ref p = problem(c, t[X], t[WEIGHT], t[BIAS]);
    (void)types;
    layer_norm_naive_forward(&p, t[Y], t[MEAN], t[RSTD]);
}

static void magnitudes_forward(const struct op_case *c, const struct op_types *types, double *const *t,
                               double *magnitude) {
    const int64_t cols = c->size[COLS];
    (void)types;
    for (int64_t i = 0; i < rows_of(c) * cols; i++) {
        const int64_t first = i / cols * cols;
        double sum = 0, squares = 0;
        raise_to(&magnitude[MEAN], fabs(t[X][i]));
        if (i != first) continue;
        for (int64_t k = 0; k < cols; k++) sum += t[X][first + k] / (double)cols;
        for (int64_t k = 0; k < cols; k++) squares += pow(t[X][first + k] - sum, 2) / (double)cols;
        const double rstd = 1 / sqrt(squares + c->scalar[EPSILON]);
        for (int64_t k = 0; k < cols; k++) {
            const double scale = t[WEIGHT] ? fabs(t[WEIGHT][k]) : 1;
            raise_to(&magnitude[Y], fabs(t[X][first + k]) * rstd * scale + (t[BIAS] ? fabs(t[BIAS][k]) : 0));
        }
    }
}

/* A row of one value has no variance and is exactly its own mean: y is the bias, whatever epsilon is. */
static const char *rows_of_one_value(struct op_run *run) {
    static const double values[] = {8000, 8000.123, 1000.37, -3e4, 1e-3};
    const int64_t elements = run->count[Y], cols = run->c.size[COLS];
    if (run->c.scalar[EPSILON] == 0) return op_run_not_applicable(run, "rows of one value: 0 · Inf without epsilon");
    for (int64_t i = 0; i < elements; i++) run->t[X][i] = op_round(run->types.t, values[i / cols % OP_COUNT(values)]);
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    for (int64_t i = 0; i < elements; i++) {
        const double bias = run->t[BIAS] ? op_round(run->types.t, run->t[BIAS][i % cols]) : 0;
        if (run->t[Y][i] != bias)
            return op_run_text(run, "y[%lld] of a row of %.9g is %.9g, but must be %.9g", (long long)i, run->t[X][i],
                               run->t[Y][i], bias);
    }
    return NULL;
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
    spec[DY] = input(c, "dy", 1u << RANGE_HUGE | 1u << RANGE_OFFSET);
    spec[BX] = input(c, "x", OP_EVERY_RANGE);
    spec[BWEIGHT] = parameter(c, "weight", ROLE_IN, c->flags & NO_WEIGHT);
    spec[BWEIGHT].values = VALUES_POSITIVE;
    spec[BMEAN] = per_row(c, "mean", ROLE_IN);
    spec[BRSTD] = per_row(c, "rstd", ROLE_IN);
    spec[DX] = matrix(c, "dx", ROLE_OUT);
    spec[DX].absent = c->flags & NO_DX;
    spec[DX].relative = 1;
    spec[DX].absolute = 8 + cols / 16;
    spec[DWEIGHT] = parameter(c, "dweight", ROLE_OUT, c->flags & NO_DWEIGHT);
    spec[DBIAS] = parameter(c, "dbias", ROLE_OUT, c->flags & NO_DBIAS);
    for (int i = DWEIGHT; i <= DBIAS; i++) {
        if (c->flags & NO_WEIGHT) spec[i].kind = KIND_F32;
        spec[i].relative = 1;
        spec[i].absolute = 8 + rows / 8;
    }
}

/* mean and rstd belong to x. */
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct layer_norm_ref p = problem(c, t[BX], NULL, NULL);
    (void)types;
    for (int64_t r = 0; r < p.rows; r++) {
        double sum = 0, squares = 0;
        for (int64_t k = 0; k < p.cols; k++) sum += p.x[r * p.cols + k];
        t[BMEAN][r] = sum / (double)p.cols;
        for (int64_t k = 0; k < p.cols; k++) squares += pow(p.x[r * p.cols + k] - t[BMEAN][r], 2);
        t[BRSTD][r] = 1 / sqrt(squares / (double)p.cols + p.epsilon);
    }
}

OP_DOOR(layer_norm_backward, NULL)
OP_DOOR_WORKSPACE(layer_norm_backward)

static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct layer_norm_ref p = problem(c, t[BX], t[BWEIGHT], NULL);
    (void)types;
    layer_norm_ref_backward(&p, t[DY], t[BMEAN], t[BRSTD], t[DX], t[DWEIGHT], t[DBIAS]);
}

static void naive_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct layer_norm_ref p = problem(c, t[BX], t[BWEIGHT], NULL);
    (void)types;
    layer_norm_naive_backward(&p, t[DY], t[BMEAN], t[BRSTD], t[DX], t[DWEIGHT], t[DBIAS]);
}

/* dx is a difference of three terms: its error follows the largest one. */
static void magnitudes_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                double *magnitude) {
    const struct layer_norm_ref p = problem(c, t[BX], t[BWEIGHT], NULL);
    (void)types;
    for (int64_t r = 0; r < p.rows; r++) {
        double largest = 0, normal = 0;
        for (int64_t k = 0; k < p.cols; k++) {
            const double g = t[DY][r * p.cols + k] * (p.weight ? p.weight[k] : 1);
            raise_to(&largest, fabs(g));
            raise_to(&normal, fabs(p.x[r * p.cols + k] - t[BMEAN][r]) * t[BRSTD][r]);
        }
        raise_to(&magnitude[DX], t[BRSTD][r] * largest * (1 + normal));
    }
}

/* sum of dy · y(x); the reference's own statistics, so that their derivatives take part. */
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    enum { ROOM = 1 << 16 };
    static double y[ROOM], bias[ROOM];
    const int64_t cols = c->size[COLS], elements = rows_of(c) * cols;
    double total = 0;
    (void)types;
    if (elements > ROOM) return 0;
    const struct layer_norm_ref p = problem(c, t[BX], t[BWEIGHT], bias);
    layer_norm_ref_forward(&p, y, NULL, NULL);
    for (int64_t i = 0; i < elements; i++) total += t[DY][i] * y[i];
    return total;
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
