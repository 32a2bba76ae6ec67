/* multi_token_attention_cases.c - what the drivers need to know about multi-token attention.
 *
 * An output is a sum of taps · P, a share of P a few roundings of an exponential and a sum away from exact, dP one of taps · dy,
 * and dweight one over whole planes: their errors are parts of the same sums of magnitudes, which magnitudes_*() have. */
#include <math.h>
#include <stdlib.h>

#include "liger/ops/multi_token_attention/multi_token_attention.h"
#include "liger/ops/multi_token_attention/multi_token_attention_ref.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { BATCH, IN, OUT, SIZE, GROUPS, KH, KW, SH, SW, PH, PW, DH, DW };
enum {
    SPARSE = 1,
    NO_BIAS = 2,
    NO_DSCORES = 4,
    NO_DWEIGHT = 8,
    NO_DBIAS = 16,
    WITHOUT_P = 32,
    ONLY_F32 = 1u << LIGER_F32
};

/* scores among them, the first argument that is looked at. */
static void in_bf16(struct op_call *call) { call->t[0].dtype = call->t[1].dtype = LIGER_BF16; }

/* clang-format off */
#define SAME(kh, kw) kh, kw, 1, 1, (kh) / 2, (kw) / 2, 1, 1
static const struct op_case cases[] = {
    {"2x4x4x19 by 2, 3x5",     {2, 4, 4, 19, 2, SAME(3, 5)}},
    {"1x2x2x37 sparse",        {1, 2, 2, 37, 2, SAME(5, 3)}, .flags = SPARSE, .dtypes = ONLY_F32},
    {"2x3x3x33 depthwise 9x9", {2, 3, 3, 33, 3, SAME(9, 9)}},
    {"1x2x2x80 depthwise 9x9", {1, 2, 2, 80, 2, SAME(9, 9)}, .flags = NO_BIAS},
    {"1x2x4x21, more out",     {1, 2, 4, 21, 2, SAME(3, 3)}, .flags = NO_DSCORES},
    {"1x4x2x40, all to all",   {1, 4, 2, 40, 1, SAME(3, 9)}, .flags = NO_DBIAS},
    {"1x3x6x16, 1x1",          {1, 3, 6, 16, 1, SAME(1, 1)}, .flags = NO_DWEIGHT | NO_DBIAS},
    {"1x2x2x24, only dbias",   {1, 2, 2, 24, 2, SAME(3, 3)}, .flags = NO_DSCORES | NO_DWEIGHT},
    {"1x1x1x1, 3x3",           {1, 1, 1, 1, 1, SAME(3, 3)}},
    {"1x1x1x70, 11x13",        {1, 1, 1, 70, 1, SAME(11, 13)}},
    {"1x1x1x50, 4x2 dilated",  {1, 1, 1, 50, 1, 4, 2, 1, 1, 3, 2, 2, 4}},
    {"1x2x2x66, 5x9 dilated",  {1, 2, 2, 66, 2, 5, 9, 1, 1, 6, 4, 3, 1}},
    {"1x2x2x12, strides",      {1, 2, 2, 12, 1, 2, 3, 2, 3, 6, 13, 1, 2}},
    {"1x2x2x9, sparse strides", {1, 2, 2, 9, 2, 3, 1, 1, 2, 1, 4, 1, 1}, .flags = SPARSE, .dtypes = ONLY_F32},
    {"1x2x2x24, rows of -inf", {1, 2, 2, 24, 2, SAME(3, 3)}, .flags = WITHOUT_P, .edge = true},
    {"1x2x2x25, sparse, -inf", {1, 2, 2, 25, 2, SAME(3, 3)}, .flags = WITHOUT_P | SPARSE, .dtypes = ONLY_F32, .edge = true},
    {"1x1x1x600, 9x9",         {1, 1, 1, 600, 1, SAME(9, 9)}, .large = true},
    {"1x2x2x264, 9x9",         {1, 2, 2, 264, 2, SAME(9, 9)}, .large = true},
    {"1x1x1x30, far apart",    {1, 1, 1, 30, 1, 3, 3, 1, 1, 40000, 2000, 40000, 2000}, .large = true},
    {"1x2x2x200, sparse",      {1, 2, 2, 200, 2, SAME(9, 9)}, .flags = SPARSE, .dtypes = ONLY_F32, .large = true},
    {"no samples",             {0, 2, 2, 8, 2, SAME(3, 3)}, .edge = true},
    {"nothing of a plane",     {2, 2, 2, 0, 2, SAME(3, 3)}, .edge = true},
};
static const struct op_case bench[] = {
    {"2x32x2048 depthwise 9x9",       {2, 32, 32, 2048, 32, SAME(9, 9)}, .large = true},
    {"2x4x1024 depthwise 9x9",        {2, 4, 4, 1024, 4, SAME(9, 9)}, .large = true},
    {"2x4x1024 depthwise 9x9 sparse", {2, 4, 4, 1024, 4, SAME(9, 9)}, .flags = SPARSE, .dtypes = ONLY_F32, .large = true},
    {"2x4x1024 by 2, 3x3",            {2, 4, 4, 1024, 2, SAME(3, 3)}, .large = true},
};
static const struct op_provocation provocations[] = {
    {"groups that do not divide", OP_SIZE(GROUPS, 3),    LIGER_ERR_SHAPE, {"scores has 4 channels", "3 groups"}},
    {"a smaller result",          OP_SIZE(PH, 0),        LIGER_ERR_SHAPE, {"padding 0", "17 rows of 19"}},
    {"a larger result",           OP_SIZE(PW, 3),        LIGER_ERR_SHAPE, {"padding 3", "21 columns of 19"}},
    {"a stride",                  OP_SIZE(SW, 2),        LIGER_ERR_SHAPE, {"stride 2", "10 columns of 19"}},
    {"beyond everything",         OP_SIZE(DH, 1 << 30),  LIGER_ERR_SHAPE, {"dilation 1073741824", "0 rows of 19"}},
    {"more padding than fits",    OP_SIZE(PW, 0x1p62),   LIGER_ERR_SHAPE, {"padding 4611686018427387904", "0 columns of 19"}},
    {"sparse",                    OP_FLAGS(SPARSE),      LIGER_ERR_DTYPE, {"scores is bf16", "sparse form must have f32"}, in_bf16},
};
/* clang-format on */

static struct mta_ref problem(const struct op_case *c, const struct op_types *types, const double *scores,
                              const double *weight) {
    const int64_t *n = c->size;
    return (struct mta_ref){.batch = n[BATCH],
                            .in = n[IN],
                            .out = n[OUT],
                            .size = n[SIZE],
                            .groups = n[GROUPS],
                            .kernel = {n[KH], n[KW]},
                            .stride = {n[SH], n[SW]},
                            .padding = {n[PH], n[PW]},
                            .dilation = {n[DH], n[DW]},
                            .sparse = c->flags & SPARSE,
                            .t = types->t,
                            .scores = scores,
                            .weight = weight};
}

static double taps_of(const struct op_case *c) {
    return (double)(c->size[KH] * c->size[KW] * (c->size[IN] + c->size[OUT]) / c->size[GROUPS]);
}

static struct tensor_spec planes(const struct op_case *c, const char *name, enum tensor_role role, int64_t channels) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_T,
                                .ndim = 4,
                                .shape = {c->size[BATCH], channels, c->size[SIZE], c->size[SIZE]},
                                .specials = role == ROLE_IN};
}
static struct tensor_spec scores(const struct op_case *c) {
    struct tensor_spec spec = planes(c, "scores", ROLE_IN, c->size[IN]);
    spec.ranges = OP_EVERY_RANGE;
    spec.huge = 0x1p100;
    return spec;
}
static struct tensor_spec weights(const struct op_case *c, const char *name, enum tensor_role role) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_WEIGHT,
                                .ndim = 4,
                                .shape = {c->size[OUT], c->size[IN] / c->size[GROUPS], c->size[KH], c->size[KW]}};
}
static struct tensor_spec biases(const struct op_case *c, const char *name, enum tensor_role role, bool absent) {
    return (struct tensor_spec){
        .name = name, .role = role, .kind = KIND_WEIGHT, .ndim = 1, .shape = {c->size[OUT]}, .absent = absent};
}
static struct tensor_spec statistics(const struct op_case *c, enum tensor_role role) {
    return (struct tensor_spec){.name = "statistics",
                                .role = role,
                                .kind = KIND_F32,
                                .ndim = 4,
                                .shape = {c->size[BATCH], c->size[IN], c->size[SIZE], 2}};
}

/* Rows that have nothing, and some that have one score. */
static void take_out_rows(const struct op_case *c, double *scores) {
    const int64_t size = c->size[SIZE];
    for (int64_t i = 0; c->flags & WITHOUT_P && i < c->size[BATCH] * c->size[IN] * size * size; i++) {
        const int64_t row = i / size % size, col = i % size;
        if (row % 3 == 0 || (row % 3 == 1 && col != row / 2)) scores[i] = -INFINITY;
    }
}

#define OPTIONS_OF(c, args)                                                                                            \
    do {                                                                                                               \
        (args)->stride_h = (c)->size[SH], (args)->stride_w = (c)->size[SW];                                            \
        (args)->padding_h = (c)->size[PH], (args)->padding_w = (c)->size[PW];                                          \
        (args)->dilation_h = (c)->size[DH], (args)->dilation_w = (c)->size[DW];                                        \
        (args)->groups = (c)->size[GROUPS], (args)->sparse = (c)->flags & SPARSE ? 1 : 0;                              \
    } while (0)

static double *magnitudes_of(const double *x, int64_t count) {
    double *const y = calloc((size_t)count + 1, sizeof *y);
    if (y == NULL) abort();
    for (int64_t i = 0; x && i < count; i++) y[i] = fabs(x[i]);
    return y;
}
static double largest(const double *x, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; i++)
        if (isfinite(x[i])) most = fmax(most, fabs(x[i]));
    return most;
}
static int64_t weight_count(const struct op_case *c) {
    return c->size[OUT] * (c->size[IN] / c->size[GROUPS]) * c->size[KH] * c->size[KW];
}
static int64_t plane_count(const struct op_case *c, int64_t channels) {
    return c->size[BATCH] * channels * c->size[SIZE] * c->size[SIZE];
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { F_SCORES, F_WEIGHT, F_BIAS, F_Y, F_STATISTICS, FORWARD_TENSORS };

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    spec[F_SCORES] = scores(c);
    spec[F_WEIGHT] = weights(c, "weight", ROLE_IN);
    spec[F_BIAS] = biases(c, "bias", ROLE_IN, c->flags & NO_BIAS);
    spec[F_Y] = planes(c, "y", ROLE_OUT, c->size[OUT]);
    spec[F_Y].relative = 1.01, spec[F_Y].absolute = 16 + sqrt(taps_of(c)), spec[F_Y].inner = 1;
    spec[F_Y].steps = taps_of(c) / 2; /* of f16: a P below its normal numbers */
    spec[F_STATISTICS] = statistics(c, ROLE_OUT);
    spec[F_STATISTICS].relative = 8, spec[F_STATISTICS].absolute = 8;
}

static void prepare_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    take_out_rows(c, t[F_SCORES]);
}

static void forward_options(const struct op_case *c, void *args) {
    OPTIONS_OF(c, (liger_multi_token_attention_forward_args *)args);
}
OP_DOOR(multi_token_attention_forward, forward_options)

static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct mta_ref p = problem(c, types, t[F_SCORES], t[F_WEIGHT]);
    mta_ref_statistics(&p, t[F_STATISTICS]);
    mta_ref_forward(&p, t[F_STATISTICS], t[F_BIAS], t[F_Y]);
}
static void naive_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct mta_ref p = problem(c, types, t[F_SCORES], t[F_WEIGHT]);
    mta_naive_statistics(&p, t[F_STATISTICS]);
    mta_naive_forward(&p, t[F_STATISTICS], t[F_BIAS], t[F_Y]);
}

/* Of sparse rows P is a difference, as exact as the largest score that is not far below the others. */
static double share_of_scores(const struct op_case *c, const double *x) {
    return c->flags & SPARSE ? fmax(1, largest(x, plane_count(c, c->size[IN]))) : 1;
}

static void magnitudes_forward(const struct op_case *c, const struct op_types *types, double *const *t,
                               double *magnitude) {
    double *const weight = magnitudes_of(t[F_WEIGHT], weight_count(c)), *const bias =
                                                                            magnitudes_of(t[F_BIAS], c->size[OUT]);
    double *const y = magnitudes_of(NULL, plane_count(c, c->size[OUT]));
    const struct mta_ref p = problem(c, types, t[F_SCORES], weight);
    mta_ref_forward(&p, t[F_STATISTICS], bias, y);
    magnitude[F_Y] = largest(y, plane_count(c, c->size[OUT]));
    if (c->flags & SPARSE) magnitude[F_Y] += largest(weight, weight_count(c)) * share_of_scores(c, t[F_SCORES]);
    free(weight), free(bias), free(y);
}

/* Of the bench: both halves of y are written, one of scores is read twice. */
static double forward_bytes(const struct op_case *c, const struct op_types *types) {
    return (double)(plane_count(c, c->size[IN]) + plane_count(c, c->size[OUT])) * (double)liger_dtype_size(types->t);
}
static double forward_flops(const struct op_case *c) {
    return (double)(plane_count(c, 1) * weight_count(c)); /* two for each tap of one half of an output */
}

static const struct op_provocation forward_provocations[] = {
    {"out no multiple of groups", OP_SHAPE(F_WEIGHT, 0, 3), LIGER_ERR_SHAPE, {"weight has 3 channels", "2 groups"}}};

const struct op_cases multi_token_attention_forward_cases = {
    .name = "multi_token_attention_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .prepare = prepare_forward,
    .call = call_multi_token_attention_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .magnitudes = magnitudes_forward,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    OP_PROVOCATIONS(provocations),
    OP_MORE_PROVOCATIONS(forward_provocations),
    OP_BENCH(bench),
    .bytes = forward_bytes,
    .flops = forward_flops,
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

enum { DY, B_SCORES, B_WEIGHT, B_STATISTICS, DSCORES, DWEIGHT, DBIAS, BACKWARD_TENSORS };

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    const double terms = (double)plane_count(c, 1) / 2;
    spec[DY] = planes(c, "dy", ROLE_IN, c->size[OUT]);
    spec[DY].ranges = 1u << RANGE_OFFSET;
    spec[B_SCORES] = scores(c);
    spec[B_SCORES].specials = c->flags & NO_DWEIGHT; /* a NaN of P beside a 0 of dy is in dweight or not */
    spec[B_WEIGHT] = weights(c, "weight", ROLE_IN);
    spec[B_STATISTICS] = statistics(c, ROLE_IN);
    spec[DSCORES] = planes(c, "dscores", ROLE_OUT, c->size[IN]);
    spec[DSCORES].absent = c->flags & NO_DSCORES;
    spec[DSCORES].relative = 1.01, spec[DSCORES].absolute = 16 + sqrt(taps_of(c)), spec[DSCORES].inner = 2;
    spec[DSCORES].steps = 2;
    spec[DSCORES].nan_for_infinity = true; /* tensor cores multiply by what is beside the taps, which is 0 */
    spec[DWEIGHT] = weights(c, "dweight", ROLE_OUT);
    spec[DWEIGHT].absent = c->flags & NO_DWEIGHT;
    spec[DWEIGHT].inner = 1;
    spec[DBIAS] = biases(c, "dbias", ROLE_OUT, c->flags & NO_DBIAS);
    for (int i = DWEIGHT; i <= DBIAS; i++) spec[i].relative = 1.01, spec[i].absolute = 16 + sqrt(terms) / 4;
}

/* The statistics belong to scores. */
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    take_out_rows(c, t[B_SCORES]);
    const struct mta_ref p = problem(c, types, t[B_SCORES], t[B_WEIGHT]);
    mta_ref_statistics(&p, t[B_STATISTICS]);
}

static void backward_options(const struct op_case *c, void *args) {
    OPTIONS_OF(c, (liger_multi_token_attention_backward_args *)args);
}
OP_DOOR(multi_token_attention_backward, backward_options)
OP_DOOR_WORKSPACE(multi_token_attention_backward)

OP_EVALUATED(backward, struct mta_ref, problem(c, types, t[B_SCORES], t[B_WEIGHT]), mta_ref_backward,
             mta_naive_backward, t[B_STATISTICS], t[DY], t[DSCORES], t[DWEIGHT], t[DBIAS])

static void magnitudes_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                double *magnitude) {
    double *const weight = magnitudes_of(t[B_WEIGHT], weight_count(c));
    double *const dy = magnitudes_of(t[DY], plane_count(c, c->size[OUT]));
    double *const dprobability = magnitudes_of(NULL, plane_count(c, c->size[IN]));
    double *const dweight = magnitudes_of(NULL, weight_count(c)), *const dbias = magnitudes_of(NULL, c->size[OUT]);
    const struct mta_ref p = problem(c, types, t[B_SCORES], weight);
    mta_ref_transposed(&p, dy, dprobability);
    mta_ref_backward(&p, t[B_STATISTICS], dy, NULL, dweight, dbias);
    magnitude[DSCORES] = 2 * largest(dprobability, plane_count(c, c->size[IN]));
    magnitude[DWEIGHT] = largest(dweight, weight_count(c));
    magnitude[DBIAS] = largest(dbias, c->size[OUT]);
    if (c->flags & SPARSE) magnitude[DWEIGHT] += magnitude[DBIAS] * share_of_scores(c, t[B_SCORES]);
    free(weight), free(dy), free(dprobability), free(dweight), free(dbias);
}

static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct mta_ref p = problem(c, types, t[B_SCORES], t[B_WEIGHT]);
    double *const statistics = magnitudes_of(NULL, 2 * c->size[BATCH] * c->size[IN] * c->size[SIZE]);
    double *const y = magnitudes_of(NULL, plane_count(c, c->size[OUT])), sum = 0;
    mta_ref_statistics(&p, statistics);
    mta_ref_forward(&p, statistics, NULL, y);
    for (int64_t i = 0; i < plane_count(c, c->size[OUT]); i++) sum += y[i] * t[DY][i];
    free(statistics), free(y);
    return sum;
}
static const struct op_gradient gradients[] = {{DSCORES, B_SCORES}, {DWEIGHT, B_WEIGHT}};

/* A shift of a row's scores changes nothing, so its gradient has no component along it. */
static const char *rows_sum_to_zero(struct op_run *run) {
    const int64_t size = run->c.size[SIZE];
    if (run->c.flags & NO_DSCORES) return op_run_not_applicable(run, "no dscores");
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    for (int64_t r = 0; r < run->count[DSCORES] / size; r++) {
        double sum = 0, all = 0;
        for (int64_t j = 0; j < size; j++) {
            const double dx = run->t[DSCORES][r * size + j];
            sum += dx, all += fabs(dx);
            if (j > r % size && dx != 0)
                return op_run_text(run, "dscores of row %lld is %g at %lld", (long long)r, dx, (long long)j);
        }
        /* each element is rounded, and so is the mean that all of them lack */
        const double unit = run->types.t == LIGER_F32 ? 0x1p-24 : run->types.t == LIGER_F16 ? 0x1p-11 : 0x1p-8;
        const double limit =
            all * unit + 0x1p-18 * (all + 16) + (run->types.t == LIGER_F16 ? (double)size * 0x1p-25 : 0);
        if (!(fabs(sum) <= limit))
            return op_run_text(run, "row %lld of dscores sums to %g, allowed is %g", (long long)r, sum, limit);
    }
    return NULL;
}
static const struct op_property properties[] = {{"rows of dscores sum to 0", rows_sum_to_zero}};

static const struct op_provocation backward_provocations[] = {
    {"out no multiple of groups", OP_SHAPE(B_WEIGHT, 0, 3), LIGER_ERR_SHAPE, {"weight has 3 channels", "2 groups"}}};

const struct op_cases multi_token_attention_backward_cases = {
    .name = "multi_token_attention_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare_backward,
    .call = call_multi_token_attention_backward,
    .workspace = workspace_multi_token_attention_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes_backward,
    .loss = loss,
    OP_GRADIENTS(gradients),
    .no_aliases = OP_NO_ALIASES,
    OP_PROVOCATIONS(provocations),
    OP_MORE_PROVOCATIONS(backward_provocations),
    OP_PROPERTIES(properties),
    OP_BENCH(bench),
};
