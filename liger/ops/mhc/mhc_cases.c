/* mhc_cases.c - what the drivers need to know about pre-aggregation, post-aggregation and residual of hyper-connections.
 * Budgets are relative to what is added up, which may cancel: a few terms of each stream, or the columns of a token. */
#include <math.h>

#include "liger/ops/mhc/mhc.h"
#include "liger/ops/mhc/mhc_ref.h"
#include "tests/harness/op_door.h"

enum { TOKENS, HC, C };
enum { FOUR_D = 1, NO_DX = 2, NO_DF = 4, NO_DOTS = 8 };

/* clang-format off */
static const struct op_case cases[] = {
    {"5 of 4x24",           {5, 4, 24}},
    {"2x3 of 4x16",         {6, 4, 16}, .flags = FOUR_D},
    {"3 of 4x24, only dx",  {3, 4, 24}, .flags = NO_DF | NO_DOTS},
    {"3 of 4x24, no dx",    {3, 4, 24}, .flags = NO_DX},
    {"3 of 4x24, no df",    {3, 4, 24}, .flags = NO_DF},
    {"3 of 4x24, only df",  {3, 4, 24}, .flags = NO_DX | NO_DOTS},
    {"1 of 1x1",            {1, 1, 1}},
    {"4 of 1x17",           {4, 1, 17}},
    {"7 of 2x15",           {7, 2, 15}},
    {"9 of 3x33",           {9, 3, 33}},
    {"10 of 4x5",           {10, 4, 5}},
    {"3 of 5x8",            {3, 5, 8}},
    {"2 of 7x9",            {2, 7, 9}},
    {"3 of 8x16",           {3, 8, 16}},
    {"2 of 16x8",           {2, 16, 8}},
    {"2 of 33x3",           {2, 33, 3}},
    {"70 of 4x40",          {70, 4, 40}},
    {"5 of 4x1000",         {5, 4, 1000}},
    {"30 of 4x4096",        {30, 4, 4096}, .large = true},
    {"7 of 3x4099",         {7, 3, 4099}, .large = true},
    {"3 of 4x20000",        {3, 4, 20000}, .large = true},
    {"2 of 2x70001",        {2, 2, 70001}, .large = true},
    {"33 of 16x264",        {33, 16, 264}, .large = true},
    {"no tokens",           {0, 4, 24}, .edge = true},
};
static const struct op_case bench[] = {
    {"1638 of 4x1024",  {1638, 4, 1024}},
    {"1638 of 4x4096",  {1638, 4, 4096}},
    {"16384 of 4x4096", {16384, 4, 4096}, .dtypes = 1u << LIGER_BF16, .large = true},
};
/* clang-format on */

static struct tensor_spec per_token(const struct op_case *c, const char *name, enum tensor_role role,
                                    enum tensor_kind kind, int64_t first, int64_t second) {
    struct tensor_spec spec = {.name = name, .role = role, .kind = kind, .specials = role == ROLE_IN};
    if (c->flags & FOUR_D) spec.shape[spec.ndim++] = 2;
    spec.shape[spec.ndim++] = c->flags & FOUR_D ? c->size[TOKENS] / 2 : c->size[TOKENS];
    spec.shape[spec.ndim++] = first;
    if (second) spec.shape[spec.ndim++] = second;
    if (role == ROLE_IN) spec.ranges = OP_EVERY_RANGE, spec.huge = 0x1p50; /* their products */
    if (role == ROLE_OUT) spec.relative = 1.01, spec.absolute = 4 + (double)c->size[HC];
    return spec;
}
static struct tensor_spec streams(const struct op_case *c, const char *name, enum tensor_role role) {
    return per_token(c, name, role, KIND_T, c->size[HC], c->size[C]);
}
static struct tensor_spec rows(const struct op_case *c, const char *name, enum tensor_role role,
                               enum tensor_kind kind) {
    return per_token(c, name, role, kind, c->size[C], 0);
}
static struct tensor_spec coefficients(const struct op_case *c, const char *name, enum tensor_role role, bool matrix) {
    return per_token(c, name, role, KIND_F32, c->size[HC], matrix ? c->size[HC] : 0);
}
/* A product over the columns. */
static struct tensor_spec dots(const struct op_case *c, const char *name, bool matrix) {
    struct tensor_spec spec = coefficients(c, name, ROLE_OUT, matrix);
    spec.relative = 1, spec.absolute = 8 + (double)c->size[C] / 16;
    spec.absent = c->flags & NO_DOTS;
    return spec;
}

static struct mhc_ref problem(const struct op_case *c, const double *x) {
    return (struct mhc_ref){.tokens = c->size[TOKENS], .hc = c->size[HC], .c = c->size[C], .x = x};
}
static double largest_of(const double *values, int64_t count) {
    double most = 0;
    for (int64_t i = 0; values && i < count; i++)
        if (isfinite(values[i])) most = fmax(most, fabs(values[i]));
    return most;
}
/* Of elements of a tensor for each token. */
static double largest(const struct op_case *c, const double *values, int64_t each) {
    return largest_of(values, c->size[TOKENS] * each);
}
static double of_x(const struct op_case *c, const double *x) { return largest(c, x, c->size[HC] * c->size[C]); }
static double of_h(const struct op_case *c, const double *h, bool matrix) {
    return largest(c, h, matrix ? c->size[HC] * c->size[HC] : c->size[HC]);
}
/* Sums of so many products of terms of either sign. */
static double sum_of(double terms, double one, double other) { return sqrt(terms) * one * other; }

/* ---- pre-aggregation ----------------------------------------------------------------------------------------------- */

enum { X, H_PRE, Y, PRE_FORWARD_TENSORS };

static void describe_pre_forward(const struct op_case *c, struct tensor_spec *spec) {
    spec[X] = streams(c, "x", ROLE_IN);
    spec[H_PRE] = coefficients(c, "h_pre", ROLE_IN, false);
    spec[Y] = rows(c, "y", ROLE_OUT, KIND_T);
}
OP_DOOR(mhc_pre_forward, NULL)
OP_EVALUATED(pre_forward, struct mhc_ref, problem(c, t[X]), mhc_pre_forward_ref, mhc_pre_forward_naive, t[H_PRE], t[Y])
static void magnitudes_pre_forward(const struct op_case *c, const struct op_types *types, double *const *t,
                                   double *magnitude) {
    (void)types;
    magnitude[Y] = sum_of((double)c->size[HC], of_x(c, t[X]), of_h(c, t[H_PRE], false));
}
static const struct op_provocation pre_forward_provocations[] = {
    {"half a token", OP_SHAPE(H_PRE, 0, 4), LIGER_ERR_SHAPE, {"x has 20 rows", "must have 16, of 4 streams"}},
};

const struct op_cases mhc_pre_forward_cases = {
    .name = "mhc_pre_forward",
    .tensor_count = PRE_FORWARD_TENSORS,
    .describe = describe_pre_forward,
    OP_CASES(cases),
    .call = call_mhc_pre_forward,
    .reference = reference_pre_forward,
    .naive = naive_pre_forward,
    .magnitudes = magnitudes_pre_forward,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    OP_PROVOCATIONS(pre_forward_provocations),
    OP_BENCH(bench),
};

enum { PDY, PX, PH_PRE, PDX, PDH_PRE, PRE_BACKWARD_TENSORS };

static void describe_pre_backward(const struct op_case *c, struct tensor_spec *spec) {
    spec[PDY] = rows(c, "dy", ROLE_IN, KIND_T);
    spec[PX] = streams(c, "x", ROLE_IN);
    spec[PH_PRE] = coefficients(c, "h_pre", ROLE_IN, false);
    spec[PDX] = streams(c, "dx", ROLE_OUT);
    spec[PDX].absent = c->flags & NO_DX;
    spec[PDH_PRE] = dots(c, "dh_pre", false);
}
OP_DOOR(mhc_pre_backward, NULL)
OP_EVALUATED(pre_backward, struct mhc_ref, problem(c, t[PX]), mhc_pre_backward_ref, mhc_pre_backward_naive, t[PDY],
             t[PH_PRE], t[PDX], t[PDH_PRE])
static void magnitudes_pre_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                    double *magnitude) {
    (void)types;
    magnitude[PDH_PRE] = sum_of((double)c->size[C], of_x(c, t[PX]), largest(c, t[PDY], c->size[C]));
}
static double loss_pre(const struct op_case *c, const struct op_types *types, double *const *t) {
    enum { ROOM = 1 << 15 };
    static double y[ROOM];
    const struct mhc_ref p = problem(c, t[PX]);
    double total = 0;
    (void)types;
    if (p.tokens * p.c > ROOM) return 0;
    mhc_pre_forward_ref(&p, t[PH_PRE], y);
    for (int64_t i = 0; i < p.tokens * p.c; i++) total += t[PDY][i] * y[i];
    return total;
}
static const struct op_gradient pre_gradients[] = {{PDX, PX}, {PDH_PRE, PH_PRE}};
static const struct op_provocation pre_backward_provocations[] = {
    {"half a token", OP_SHAPE(PX, 0, 4), LIGER_ERR_SHAPE, {"x has 16 rows", "must have 20, of 4 streams"}},
};

const struct op_cases mhc_pre_backward_cases = {
    .name = "mhc_pre_backward",
    .tensor_count = PRE_BACKWARD_TENSORS,
    .describe = describe_pre_backward,
    OP_CASES(cases),
    .call = call_mhc_pre_backward,
    .reference = reference_pre_backward,
    .naive = naive_pre_backward,
    .magnitudes = magnitudes_pre_backward,
    .loss = loss_pre,
    OP_GRADIENTS(pre_gradients),
    .no_aliases = OP_NO_ALIASES,
    OP_PROVOCATIONS(pre_backward_provocations),
    OP_BENCH(bench),
};

/* ---- post-aggregation and residual --------------------------------------------------------------------------------- */

enum { RX, RF, RH_POST, RH_RES, RY, POST_FORWARD_TENSORS };

static void describe_post_forward(const struct op_case *c, struct tensor_spec *spec) {
    spec[RX] = streams(c, "x", ROLE_IN);
    spec[RF] = rows(c, "f", ROLE_IN, KIND_WEIGHT);
    spec[RH_POST] = coefficients(c, "h_post", ROLE_IN, false);
    spec[RH_RES] = coefficients(c, "h_res", ROLE_IN, true);
    spec[RY] = streams(c, "y", ROLE_OUT);
}
OP_DOOR(mhc_post_res_forward, NULL)
OP_EVALUATED(post_forward, struct mhc_ref, problem(c, t[RX]), mhc_post_res_forward_ref, mhc_post_res_forward_naive,
             t[RF], t[RH_POST], t[RH_RES], t[RY])
static void magnitudes_post_forward(const struct op_case *c, const struct op_types *types, double *const *t,
                                    double *magnitude) {
    (void)types;
    magnitude[RY] = sum_of((double)c->size[HC], of_x(c, t[RX]), of_h(c, t[RH_RES], true)) +
                    largest(c, t[RF], c->size[C]) * of_h(c, t[RH_POST], false);
}
static const struct op_provocation post_forward_provocations[] = {
    {"half a token", OP_SHAPE(RX, 0, 4), LIGER_ERR_SHAPE, {"x has 16 rows", "must have 20, of 4 streams"}},
};

const struct op_cases mhc_post_res_forward_cases = {
    .name = "mhc_post_res_forward",
    .tensor_count = POST_FORWARD_TENSORS,
    .describe = describe_post_forward,
    OP_CASES(cases),
    .call = call_mhc_post_res_forward,
    .reference = reference_post_forward,
    .naive = naive_post_forward,
    .magnitudes = magnitudes_post_forward,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    OP_PROVOCATIONS(post_forward_provocations),
    OP_BENCH(bench),
};

enum { BDY, BX, BF, BH_POST, BH_RES, BDX, BDF, BDH_POST, BDH_RES, POST_BACKWARD_TENSORS };

static void describe_post_backward(const struct op_case *c, struct tensor_spec *spec) {
    spec[BDY] = streams(c, "dy", ROLE_IN);
    spec[BX] = streams(c, "x", ROLE_IN);
    spec[BF] = rows(c, "f", ROLE_IN, KIND_WEIGHT);
    spec[BH_POST] = coefficients(c, "h_post", ROLE_IN, false);
    spec[BH_RES] = coefficients(c, "h_res", ROLE_IN, true);
    spec[BDX] = streams(c, "dx", ROLE_OUT);
    spec[BDX].absent = c->flags & NO_DX;
    spec[BDF] = rows(c, "df", ROLE_OUT, KIND_WEIGHT);
    spec[BDF].absent = c->flags & NO_DF;
    spec[BDH_POST] = dots(c, "dh_post", false);
    spec[BDH_RES] = dots(c, "dh_res", true);
}
OP_DOOR(mhc_post_res_backward, NULL)
OP_EVALUATED(post_backward, struct mhc_ref, problem(c, t[BX]), mhc_post_res_backward_ref, mhc_post_res_backward_naive,
             t[BDY], t[BF], t[BH_POST], t[BH_RES], t[BDX], t[BDF], t[BDH_POST], t[BDH_RES])
static void magnitudes_post_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                     double *magnitude) {
    const double up = of_x(c, t[BDY]), hc = (double)c->size[HC], cols = (double)c->size[C];
    (void)types;
    magnitude[BDX] = sum_of(hc, up, of_h(c, t[BH_RES], true));
    magnitude[BDF] = sum_of(hc, up, of_h(c, t[BH_POST], false));
    magnitude[BDH_POST] = sum_of(cols, up, largest(c, t[BF], c->size[C]));
    magnitude[BDH_RES] = sum_of(cols, up, of_x(c, t[BX]));
}
static double loss_post(const struct op_case *c, const struct op_types *types, double *const *t) {
    enum { ROOM = 1 << 15 };
    static double y[ROOM];
    const struct mhc_ref p = problem(c, t[BX]);
    double total = 0;
    (void)types;
    if (p.tokens * p.hc * p.c > ROOM) return 0;
    mhc_post_res_forward_ref(&p, t[BF], t[BH_POST], t[BH_RES], y);
    for (int64_t i = 0; i < p.tokens * p.hc * p.c; i++) total += t[BDY][i] * y[i];
    return total;
}
static const struct op_gradient post_gradients[] = {{BDX, BX}, {BDF, BF}, {BDH_POST, BH_POST}, {BDH_RES, BH_RES}};
static const struct op_provocation post_backward_provocations[] = {
    {"half a token", OP_SHAPE(BH_POST, 0, 4), LIGER_ERR_SHAPE, {"h_post: shape[0] is 4, but must be 5"}},
};

const struct op_cases mhc_post_res_backward_cases = {
    .name = "mhc_post_res_backward",
    .tensor_count = POST_BACKWARD_TENSORS,
    .describe = describe_post_backward,
    OP_CASES(cases),
    .call = call_mhc_post_res_backward,
    .reference = reference_post_backward,
    .naive = naive_post_backward,
    .magnitudes = magnitudes_post_backward,
    .loss = loss_post,
    OP_GRADIENTS(post_gradients),
    .no_aliases = OP_NO_ALIASES,
    OP_PROVOCATIONS(post_backward_provocations),
    OP_BENCH(bench),
};
