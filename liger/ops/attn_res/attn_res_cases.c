/* attn_res_cases.c - shapes and tolerances of attn_res. Budgets are relative to what is added up, which may cancel. */
#include <math.h>
#include <stdlib.h>

#include "liger/ops/attn_res/attn_res.h"
#include "liger/ops/attn_res/attn_res_ref.h"
#include "tests/harness/op_door.h"

enum { BLOCKS, ROWS, COLS };
enum { NO_DV = 1, NO_PARAMETERS = 2, FOUR_D = 4, IN_BF16 = 8 };

static const struct op_case cases[] = {
    {.label = "3 of 4x33", .size = {3, 4, 33}},
    {.label = "4 of 2x3x24", .size = {4, 6, 24}, .flags = FOUR_D},
    {.label = "1 of 1x1", .size = {1, 1, 1}},
    {.label = "1 of 5x16", .size = {1, 5, 16}},
    {.label = "40 of 3x17", .size = {40, 3, 17}},
    {.label = "5 of 40x64", .size = {5, 40, 64}},
    {.label = "3 of 4x24 only dv", .size = {3, 4, 24}, .flags = NO_PARAMETERS},
    {.label = "3 of 4x24 only parameters", .size = {3, 4, 24}, .flags = NO_DV},
    {.label = "3 of 4x24 normals in bf16", .size = {3, 4, 24}, .flags = IN_BF16},
    {.label = "2 of 300x8", .size = {2, 300, 8}},
    {.label = "9 of 20x1024", .size = {9, 20, 1024}, .large = true},
    {.label = "33 of 700x40", .size = {33, 700, 40}, .large = true},
    {.label = "6 of 5x4099", .size = {6, 5, 4099}, .large = true},
    {.label = "4 of 3x8192", .size = {4, 3, 8192}, .large = true},
    {.label = "2 of 2x70001", .size = {2, 2, 70001}, .large = true},
    {.label = "no rows", .size = {3, 0, 33}, .edge = true},
};
static const struct op_case bench[] = {
    {.label = "8 of 512x1024", .size = {8, 512, 1024}},
    {.label = "16 of 8192x4096", .size = {16, 8192, 4096}, .dtypes = 1u << LIGER_BF16, .large = true},
};

static struct tensor_spec matrix(const struct op_case *c, const char *name, enum tensor_role role, bool stacked) {
    struct tensor_spec spec = {.name = name, .role = role, .kind = KIND_T, .gaps = true, .specials = true};
    if (stacked) spec.shape[spec.ndim++] = c->size[BLOCKS];
    if (c->flags & FOUR_D) spec.shape[spec.ndim++] = 2;
    spec.shape[spec.ndim++] = c->flags & FOUR_D ? c->size[ROWS] / 2 : c->size[ROWS];
    spec.shape[spec.ndim++] = c->size[COLS];
    return spec;
}
/* Scores are about N(0, 1). */
static struct tensor_spec parameter(const struct op_case *c, const char *name, enum tensor_role role, bool query) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_WEIGHT,
                                .values = query ? VALUES_NORMAL : VALUES_POSITIVE,
                                .spread = query ? 1 / sqrt((double)c->size[COLS]) : 0,
                                .ndim = 1,
                                .shape = {c->size[COLS]}};
}
static struct tensor_spec per_row(const struct op_case *c, const char *name, enum tensor_role role) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_F32,
                                .values = VALUES_POSITIVE,
                                .ndim = 1,
                                .shape = {c->size[BLOCKS] * c->size[ROWS]}};
}

static const double epsilon = 1e-6;

static struct attn_res_ref problem(const struct op_case *c, const struct op_types *types, const double *v,
                                   const double *query, const double *norm) {
    return (struct attn_res_ref){.blocks = c->size[BLOCKS],
                                 .rows = c->size[ROWS],
                                 .cols = c->size[COLS],
                                 .norm_dtype = types->t && c->flags & IN_BF16 ? LIGER_BF16 : types->weight,
                                 .epsilon = (float)epsilon,
                                 .v = v,
                                 .query = query,
                                 .norm = norm};
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { V, QUERY, NORM, H, ALPHA, RSTD, FORWARD_TENSORS };

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const double cols = (double)c->size[COLS];
    spec[V] = matrix(c, "v", ROLE_IN, true);
    spec[V].ranges = OP_EVERY_RANGE, spec[V].huge = 0x1p55; /* the squares of a row */
    spec[QUERY] = parameter(c, "query", ROLE_IN, true);
    spec[NORM] = parameter(c, "norm", ROLE_IN, false);
    /* What a score is off by, every alpha is; and of x̂ a rounding or two may fall on the other side. */
    spec[H] = matrix(c, "h", ROLE_OUT, false);
    spec[H].relative = 1.01, spec[H].absolute = 24 + cols / 16, spec[H].inner = 1;
    spec[H].steps = (double)c->size[BLOCKS] / 2; /* each addition is off by half a step */
    spec[ALPHA] = per_row(c, "alpha", ROLE_OUT);
    spec[ALPHA].relative = 1, spec[ALPHA].absolute = 24 + cols / 16, spec[ALPHA].inner = 1;
    spec[RSTD] = per_row(c, "rstd", ROLE_OUT);
    spec[RSTD].relative = 3 + cols / 32;
}

static void forward_options(const struct op_case *c, void *args) {
    ((liger_attn_res_forward_args *)args)->epsilon = (float)epsilon;
    ((liger_attn_res_forward_args *)args)->normal_dtype = c->flags & IN_BF16 ? LIGER_BF16 : 0;
}
OP_DOOR(attn_res_forward, forward_options)

OP_EVALUATED(forward, struct attn_res_ref, problem(c, types, t[V], t[QUERY], t[NORM]), attn_res_forward_ref,
             attn_res_forward_naive, t[H], t[ALPHA], t[RSTD])

/* h is a mean of v's, which may cancel. */
static void magnitudes_forward(const struct op_case *c, const struct op_types *types, double *const *t,
                               double *magnitude) {
    (void)types;
    for (int64_t i = 0; i < c->size[BLOCKS] * c->size[ROWS] * c->size[COLS]; i++)
        if (isfinite(t[V][i])) magnitude[H] = fmax(magnitude[H], fabs(t[V][i]));
}

static const struct op_provocation forward_provocations[] = {
    {"half a block",
     OP_SHAPE(H, 0, 5),
     LIGER_ERR_SHAPE,
     {"v has 12 rows, but must have those of all blocks, of 5 each"}},
};

const struct op_cases attn_res_forward_cases = {
    .name = "attn_res_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .call = call_attn_res_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .magnitudes = magnitudes_forward,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    OP_PROVOCATIONS(forward_provocations),
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

enum { DH, BV, BQUERY, BNORM, BALPHA, BRSTD, DV, DQUERY, DNORM, BACKWARD_TENSORS };

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    spec[DH] = matrix(c, "dh", ROLE_IN, false);
    spec[DH].ranges = 1u << RANGE_HUGE | 1u << RANGE_OFFSET, spec[DH].huge = 0x1p40;
    spec[BV] = matrix(c, "v", ROLE_IN, true);
    spec[BV].ranges = OP_EVERY_RANGE, spec[BV].huge = 0x1p40; /* their products */
    spec[BQUERY] = parameter(c, "query", ROLE_IN, true);
    spec[BNORM] = parameter(c, "norm", ROLE_IN, false);
    spec[BALPHA] = per_row(c, "alpha", ROLE_IN);
    spec[BRSTD] = per_row(c, "rstd", ROLE_IN);
    spec[DV] = matrix(c, "dv", ROLE_OUT, true);
    spec[DV].absent = c->flags & NO_DV;
    spec[DV].relative = 1.01, spec[DV].absolute = 16;
    spec[DQUERY] = parameter(c, "dquery", ROLE_OUT, false);
    spec[DQUERY].absent = c->flags & NO_PARAMETERS;
    spec[DQUERY].relative = 1.01, spec[DQUERY].absolute = 16, spec[DQUERY].inner = 1;
    spec[DNORM] = spec[DQUERY], spec[DNORM].name = "dnorm";
}

/* alpha and rstd belong to v. */
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    double *h = calloc((size_t)(c->size[ROWS] * c->size[COLS]) + 1, sizeof *h);
    const struct attn_res_ref p = problem(c, types, t[BV], t[BQUERY], t[BNORM]);
    if (h) attn_res_forward_ref(&p, h, t[BALPHA], t[BRSTD]);
    free(h);
}

static void backward_options(const struct op_case *c, void *args) {
    ((liger_attn_res_backward_args *)args)->normal_dtype = c->flags & IN_BF16 ? LIGER_BF16 : 0;
}
OP_DOOR(attn_res_backward, backward_options)
OP_DOOR_WORKSPACE(attn_res_backward)

OP_EVALUATED(backward, struct attn_res_ref, problem(c, types, t[BV], t[BQUERY], t[BNORM]), attn_res_backward_ref,
             attn_res_backward_naive, t[DH], t[BALPHA], t[BRSTD], t[DV], t[DQUERY], t[DNORM])

/* ⟨dh, v⟩ without its signs: ds is a difference of such. */
static double size_of_ds(const struct op_case *c, double *const *t, int64_t row) {
    const int64_t rows = c->size[ROWS], cols = c->size[COLS];
    double total = 0, own = 0;
    for (int64_t m = row % rows; m < c->size[BLOCKS] * rows; m += rows) {
        double dot = 0;
        for (int64_t k = 0; k < cols; k++) dot += fabs(t[DH][row % rows * cols + k] * t[BV][m * cols + k]);
        total += t[BALPHA][m] * dot;
        if (m == row) own = dot;
    }
    return t[BALPHA][row] * (own + total);
}

static void magnitudes_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                double *magnitude) {
    const int64_t rows = c->size[ROWS], cols = c->size[COLS];
    double largest = 0, squares = 0, of_query = 0, of_norm = 0;
    (void)types;
    for (int64_t k = 0; k < cols; k++)
        of_query = fmax(of_query, fabs(t[BQUERY][k])), of_norm = fmax(of_norm, fabs(t[BNORM][k]));
    for (int64_t row = 0; row < c->size[BLOCKS] * rows; row++) {
        const double ds = size_of_ds(c, t, row);
        double normal = 0, up = 0;
        for (int64_t k = 0; k < cols; k++) {
            normal = fmax(normal, fabs(t[BV][row * cols + k] * t[BRSTD][row]));
            up = fmax(up, fabs(t[DH][row % rows * cols + k]));
        }
        const double dv = t[BALPHA][row] * up + ds * t[BRSTD][row] * of_query * of_norm * (1 + normal);
        if (!isfinite(dv) || !isfinite(ds)) continue;
        largest = fmax(largest, dv), squares = hypot(squares, ds * normal);
    }
    magnitude[DV] = largest, magnitude[DQUERY] = squares * of_norm, magnitude[DNORM] = squares * of_query;
}

static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    enum { ROOM = 1 << 13 };
    static double h[ROOM], alpha[ROOM], rstd[ROOM];
    if (c->size[ROWS] * c->size[COLS] > ROOM || c->size[BLOCKS] * c->size[ROWS] > ROOM) return 0;
    const struct attn_res_ref p = problem(c, types, t[BV], t[BQUERY], t[BNORM]);
    attn_res_forward_ref(&p, h, alpha, rstd);
    double total = 0;
    for (int64_t i = 0; i < c->size[ROWS] * c->size[COLS]; i++) total += t[DH][i] * h[i];
    return total;
}

static const struct op_gradient gradients[] = {{DV, BV}, {DQUERY, BQUERY}, {DNORM, BNORM}};
static const struct op_provocation backward_provocations[] = {
    {"half a block",
     OP_SHAPE(DH, 0, 5),
     LIGER_ERR_SHAPE,
     {"v has 12 rows, but must have those of all blocks, of 5 each"}},
};

const struct op_cases attn_res_backward_cases = {
    .name = "attn_res_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare_backward,
    .call = call_attn_res_backward,
    .workspace = workspace_attn_res_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes_backward,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_PROVOCATIONS(backward_provocations),
    OP_BENCH(bench),
};
