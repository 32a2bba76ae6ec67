/* mhc_coeffs_cases.c - what the drivers need to know about the coefficients of hyper-connections.
 *
 * Budgets. A logit is off by what f32 sums of k terms are. A logistic function's slope is at most 1/4, Sinkhorn's about 1, and
 * every step of the iteration rounds. Gradients are sums that may cancel: `magnitudes` adds up their terms without signs. */
#include <math.h>
#include <stdlib.h>

#include "liger/ops/mhc/mhc.h"
#include "liger/ops/mhc/mhc_ref.h"
#include "tests/harness/op_door.h"

enum { TOKENS, HC, C, TMAX };
enum {
    FOUR_D = 1,
    NO_X_IN = 2,
    NO_H_PRE = 4,
    NO_H_POST = 8,
    NO_H_RES = 16,
    NO_SO_FAR = 32,
    NO_DX = 64,
    NO_SUMS = 128,
    NO_DPHI = 256
};

/* clang-format off */
static const struct op_case cases[] = {
    {"5 of 2x24",             {5, 2, 24, 5}}, /* a small workspace: the mode of errors puts it on tensors */
    {"5 of 4x24",             {5, 4, 24, 20}},
    {"2x3 of 4x16, tmax 1",   {6, 4, 16, 1}, .flags = FOUR_D},
    {"3 of 4x24, no x_in",    {3, 4, 24, 3}, .flags = NO_X_IN | NO_SO_FAR},
    {"3 of 4x24, only h_pre", {3, 4, 24, 2}, .flags = NO_X_IN | NO_H_POST | NO_H_RES | NO_SO_FAR},
    {"3 of 4x24, only h_post", {3, 4, 24, 2}, .flags = NO_X_IN | NO_H_PRE | NO_H_RES},
    {"3 of 4x24, only h_res", {3, 4, 24, 2}, .flags = NO_X_IN | NO_H_PRE | NO_H_POST | NO_SO_FAR},
    {"3 of 4x24, only x_in",  {3, 4, 24, 2}, .flags = NO_H_PRE | NO_H_POST | NO_H_RES},
    {"3 of 4x24, only dx",    {3, 4, 24, 2}, .flags = NO_SUMS | NO_DPHI},
    {"3 of 4x24, no dx",      {3, 4, 24, 2}, .flags = NO_DX},
    {"3 of 4x24, only dphi",  {3, 4, 24, 2}, .flags = NO_DX | NO_SUMS},
    {"1 of 1x1",              {1, 1, 1, 2}},
    {"4 of 1x17",             {4, 1, 17, 20}},
    {"7 of 2x15",             {7, 2, 15, 20}},
    {"9 of 3x33",             {9, 3, 33, 20}},
    {"3 of 5x8",              {3, 5, 8, 20}},
    {"10 of 4x5",             {10, 4, 5, 20}},
    {"2 of 7x9",              {2, 7, 9, 5}},
    {"3 of 8x16",             {3, 8, 16, 20}},
    {"2 of 16x8",             {2, 16, 8, 20}},
    {"1 of 20x4",             {1, 20, 4, 4}},
    {"1 of 33x3",             {1, 33, 3, 3}},
    {"70 of 4x40",            {70, 4, 40, 20}},
    {"130 of 2x64",           {130, 2, 64, 20}},
    {"300 of 4x1000",         {300, 4, 1000, 20}, .large = true},
    {"67 of 4x4096",          {67, 4, 4096, 20}, .large = true},
    {"65 of 8x512",           {65, 8, 512, 20}, .large = true},
    {"2100 of 4x64",          {2100, 4, 64, 20}, .large = true},
    {"33 of 16x264",          {33, 16, 264, 20}, .large = true},
    {"no tokens",             {0, 4, 24, 20}, .edge = true},
};
static const struct op_case bench[] = {
    {"1638 of 4x1024",  {1638, 4, 1024, 20}},
    {"1638 of 4x4096",  {1638, 4, 4096, 20}, .flags = 0},
    {"16384 of 4x4096", {16384, 4, 4096, 20}, .dtypes = 1u << LIGER_BF16, .large = true},
};
/* clang-format on */

static int64_t k_of(const struct op_case *c) { return c->size[HC] * c->size[C]; }
static int64_t m_of(const struct op_case *c) { return c->size[HC] * (c->size[HC] + 2); }

/* [tokens, ...] with up to two dimensions behind. */
static struct tensor_spec per_token(const struct op_case *c, const char *name, enum tensor_role role,
                                    enum tensor_kind kind, int64_t first, int64_t second) {
    struct tensor_spec spec = {.name = name, .role = role, .kind = kind, .specials = role == ROLE_IN};
    if (c->flags & FOUR_D) spec.shape[spec.ndim++] = 2;
    spec.shape[spec.ndim++] = c->flags & FOUR_D ? c->size[TOKENS] / 2 : c->size[TOKENS];
    spec.shape[spec.ndim++] = first;
    if (second) spec.shape[spec.ndim++] = second;
    return spec;
}
static struct tensor_spec of_x(const struct op_case *c, const char *name, enum tensor_role role) {
    return per_token(c, name, role, KIND_T, c->size[HC], c->size[C]);
}
static struct tensor_spec vector(const char *name, enum tensor_role role, int ndim, int64_t size) {
    return (struct tensor_spec){.name = name, .role = role, .kind = KIND_F32, .ndim = ndim, .shape = {size}};
}
/* Logits are about N(0, 1). */
static void describe_parameters(const struct op_case *c, struct tensor_spec *spec) {
    spec[0] = (struct tensor_spec){.name = "phi",
                                   .role = ROLE_IN,
                                   .kind = KIND_WEIGHT,
                                   .spread = 1 / sqrt((double)k_of(c)),
                                   .specials = true,
                                   .ndim = 2,
                                   .shape = {k_of(c), m_of(c)}};
    spec[1] = vector("b", ROLE_IN, 1, m_of(c));
    spec[2] = vector("alpha_pre", ROLE_IN, 0, 0);
    spec[3] = vector("alpha_post", ROLE_IN, 0, 0);
    spec[4] = vector("alpha_res", ROLE_IN, 1, 1);
    for (int part = 2; part < 5; part++) spec[part].values = VALUES_POSITIVE;
}
static void describe_kept(const struct op_case *c, enum tensor_role role, struct tensor_spec *spec) {
    spec[0] = (struct tensor_spec){.name = "mix", .role = role, .kind = KIND_F32, .ndim = 2};
    spec[0].shape[0] = c->size[TOKENS], spec[0].shape[1] = m_of(c);
    spec[1] = vector("rstd", role, 1, c->size[TOKENS]);
}

static const double rms_eps = 1e-6, pre_eps = 0.125, sinkhorn_eps = 1e-6, post_mult = 2;

static struct mhc_ref problem(const struct op_case *c, double *const *t, int x, int phi) {
    return (struct mhc_ref){.tokens = c->size[TOKENS],
                            .hc = c->size[HC],
                            .c = c->size[C],
                            .tmax = c->size[TMAX],
                            .rms_eps = (float)rms_eps,
                            .pre_eps = (float)pre_eps,
                            .sinkhorn_eps = (float)sinkhorn_eps,
                            .post_mult = (float)post_mult,
                            .x = t[x],
                            .phi = t[phi],
                            .b = t[phi + 1],
                            .alpha = {t[phi + 2], t[phi + 3], t[phi + 4]}};
}

static double largest_of(const double *values, int64_t count) {
    double most = 0;
    for (int64_t i = 0; values && i < count; i++)
        if (isfinite(values[i])) most = fmax(most, fabs(values[i]));
    return most;
}
static double alpha_of(const struct mhc_ref *p) {
    return fmax(fabs(p->alpha[0][0]), fmax(fabs(p->alpha[1][0]), fabs(p->alpha[2][0])));
}

/* ---- forward ------------------------------------------------------------------------------------------------------ */

enum { X, PHI, B, ALPHA, H_PRE = ALPHA + 3, H_POST, H_RES, X_IN, MIX, RSTD, FORWARD_TENSORS };

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const double sums = 24 + (double)k_of(c) / 16;
    spec[X] = of_x(c, "x", ROLE_IN);
    spec[X].ranges = OP_EVERY_RANGE, spec[X].huge = 0x1p55; /* the squares of a token */
    describe_parameters(c, &spec[PHI]);
    spec[H_PRE] = per_token(c, "h_pre", ROLE_OUT, KIND_F32, c->size[HC], 0);
    spec[H_POST] = per_token(c, "h_post", ROLE_OUT, KIND_F32, c->size[HC], 0);
    spec[H_RES] = per_token(c, "h_res", ROLE_OUT, KIND_F32, c->size[HC], c->size[HC]);
    spec[X_IN] = per_token(c, "x_in", ROLE_OUT, KIND_T, c->size[C], 0);
    spec[X_IN].absent = c->flags & NO_X_IN;
    describe_kept(c, ROLE_OUT, &spec[MIX]);
    for (int i = H_PRE; i <= MIX; i++) spec[i].relative = 4, spec[i].absolute = sums;
    spec[H_RES].absolute += 4;
    spec[MIX].steps = 500 * (double)k_of(c); /* what a product of subnormals lacks, times the largest rstd */
    spec[X_IN].relative = 1;
    spec[RSTD].relative = 3 + (double)k_of(c) / 32;
}

static void forward_options(const struct op_case *c, void *args) {
    liger_mhc_coeffs_forward_args *to = args;
    to->tmax = c->size[TMAX], to->rms_eps = (float)rms_eps, to->pre_eps = (float)pre_eps;
    to->sinkhorn_eps = (float)sinkhorn_eps, to->post_mult = (float)post_mult;
}
OP_DOOR(mhc_coeffs_forward, forward_options)
OP_DOOR_WORKSPACE(mhc_coeffs_forward)

static struct mhc_ref_results results(double *const *t) {
    return (struct mhc_ref_results){t[H_PRE], t[H_POST], t[H_RES], t[X_IN], t[MIX], t[RSTD]};
}
static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct mhc_ref p = problem(c, t, X, PHI);
    const struct mhc_ref_results to = results(t);
    (void)types;
    mhc_coeffs_forward_ref(&p, &to);
}
static void naive_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct mhc_ref p = problem(c, t, X, PHI);
    const struct mhc_ref_results to = results(t);
    (void)types;
    mhc_coeffs_forward_naive(&p, &to);
}

static void magnitudes_forward(const struct op_case *c, const struct op_types *types, double *const *t,
                               double *magnitude) {
    const struct mhc_ref p = problem(c, t, X, PHI);
    double terms = 0;
    (void)types;
    for (int64_t n = 0; n < p.tokens; n++) {
        double squares = 0; /* a sum of products is at most the product of the lengths */
        for (int64_t m = 0; m < m_of(c); m++) {
            double sum = 0;
            for (int64_t k = 0; k < k_of(c); k++)
                sum += fabs(p.x[n * k_of(c) + k] * p.phi[k * m_of(c) + m]) * t[RSTD][n];
            if (isfinite(sum)) squares = fmax(squares, sum);
        }
        terms = fmax(terms, squares);
    }
    const double root = sqrt((double)k_of(c)), logit = terms / root + largest_of(t[MIX], p.tokens * m_of(c));
    magnitude[MIX] = logit;
    magnitude[H_PRE] = magnitude[H_RES] = 1 + alpha_of(&p) * logit + largest_of(p.b, m_of(c));
    magnitude[H_POST] = fabs(p.post_mult) * magnitude[H_PRE];
    magnitude[X_IN] = (double)p.hc * largest_of(p.x, p.tokens * k_of(c)) * magnitude[H_PRE];
}

static void spoil_columns(struct op_call *call) { call->t[PHI].shape[1] = call->t[PHI].stride[0] = 23; }
static const struct op_provocation forward_provocations[] = {
    {"phi of other columns", OP_SHAPE(PHI, 0, 100), LIGER_ERR_SHAPE, {"phi has 100 rows", "a multiple of 24"}},
    {"phi of fewer coefficients",
     {CHANGES_NOTHING, 0, 0, 0},
     LIGER_ERR_SHAPE,
     {"phi has 23 columns", "8, for 2 streams"},
     spoil_columns},
    {"half a token", OP_SHAPE(H_PRE, 0, 4), LIGER_ERR_SHAPE, {"x has 10 rows", "must have 8, of 2 streams"}},
};

const struct op_cases mhc_coeffs_forward_cases = {
    .name = "mhc_coeffs_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .call = call_mhc_coeffs_forward,
    .workspace = workspace_mhc_coeffs_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .magnitudes = magnitudes_forward,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    OP_PROVOCATIONS(forward_provocations),
    OP_BENCH(bench),
};

/* ---- backward ----------------------------------------------------------------------------------------------------- */

enum {
    KEPT_MIX = ALPHA + 3,
    KEPT_RSTD,
    DH_PRE,
    DH_POST,
    DH_RES,
    DX_IN,
    SO_FAR,
    DX,
    DPHI,
    DB,
    DALPHA,
    BACKWARD_TENSORS = DALPHA + 3
};

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    spec[X] = of_x(c, "x", ROLE_IN);
    spec[X].ranges = OP_EVERY_RANGE, spec[X].huge = 0x1p40; /* its products with dx_in */
    describe_parameters(c, &spec[PHI]);
    describe_kept(c, ROLE_IN, &spec[KEPT_MIX]);
    spec[DH_PRE] = per_token(c, "dh_pre", ROLE_IN, KIND_F32, c->size[HC], 0);
    spec[DH_POST] = per_token(c, "dh_post", ROLE_IN, KIND_F32, c->size[HC], 0);
    spec[DH_RES] = per_token(c, "dh_res", ROLE_IN, KIND_F32, c->size[HC], c->size[HC]);
    spec[DX_IN] = per_token(c, "dx_in", ROLE_IN, KIND_T, c->size[C], 0);
    spec[SO_FAR] = of_x(c, "dx_so_far", ROLE_IN);
    for (int i = DH_PRE; i <= SO_FAR; i++) spec[i].ranges = 1u << RANGE_OFFSET;
    spec[SO_FAR].ranges |= 1u << RANGE_HUGE;
    spec[DH_PRE].absent = c->flags & NO_H_PRE, spec[DH_POST].absent = c->flags & NO_H_POST;
    spec[DH_RES].absent = c->flags & NO_H_RES, spec[DX_IN].absent = c->flags & NO_X_IN;
    spec[SO_FAR].absent = c->flags & NO_SO_FAR;
    spec[DX] = of_x(c, "dx", ROLE_OUT);
    spec[DX].absent = c->flags & NO_DX;
    spec[DPHI] = spec[PHI], spec[DPHI].name = "dphi", spec[DPHI].role = ROLE_OUT, spec[DPHI].specials = false;
    spec[DPHI].absent = c->flags & NO_DPHI;
    spec[DB] = vector("db", ROLE_OUT, 1, m_of(c));
    spec[DALPHA] = vector("dalpha_pre", ROLE_OUT, 0, 0);
    spec[DALPHA + 1] = vector("dalpha_post", ROLE_OUT, 0, 0);
    spec[DALPHA + 2] = vector("dalpha_res", ROLE_OUT, 1, 1);
    for (int i = DB; i < BACKWARD_TENSORS; i++) spec[i].absent = c->flags & NO_SUMS;
    for (int i = DX; i < BACKWARD_TENSORS; i++)
        spec[i].relative = 1.01, spec[i].absolute = 48 + 2 * (double)c->size[TMAX];
}

/* mix and rstd belong to x. */
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct mhc_ref p = problem(c, t, X, PHI);
    const int64_t streams = p.tokens * p.hc;
    double *room = calloc((size_t)(streams * (2 + p.hc)) + 1, sizeof *room);
    (void)types;
    if (room == NULL) return;
    const struct mhc_ref_results to = {room, room + streams, room + 2 * streams, NULL, t[KEPT_MIX], t[KEPT_RSTD]};
    mhc_coeffs_forward_ref(&p, &to);
    free(room);
}

static void backward_options(const struct op_case *c, void *args) {
    liger_mhc_coeffs_backward_args *to = args;
    to->tmax = c->size[TMAX], to->pre_eps = (float)pre_eps, to->sinkhorn_eps = (float)sinkhorn_eps;
    to->post_mult = (float)post_mult;
}
OP_DOOR(mhc_coeffs_backward, backward_options)
OP_DOOR_WORKSPACE(mhc_coeffs_backward)

static struct mhc_ref_results upstreams(double *const *t) {
    return (struct mhc_ref_results){t[DH_PRE], t[DH_POST], t[DH_RES], t[DX_IN], t[KEPT_MIX], t[KEPT_RSTD]};
}
static struct mhc_ref_gradients gradients_of(double *const *t) {
    return (struct mhc_ref_gradients){t[DX], t[DPHI], t[DB], {t[DALPHA], t[DALPHA + 1], t[DALPHA + 2]}};
}
static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct mhc_ref p = problem(c, t, X, PHI);
    const struct mhc_ref_results up = upstreams(t);
    const struct mhc_ref_gradients to = gradients_of(t);
    (void)types;
    mhc_coeffs_backward_ref(&p, &up, t[SO_FAR], &to);
}
static void naive_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct mhc_ref p = problem(c, t, X, PHI);
    const struct mhc_ref_results up = upstreams(t);
    const struct mhc_ref_gradients to = gradients_of(t);
    (void)types;
    mhc_coeffs_backward_naive(&p, &up, t[SO_FAR], &to);
}

/* What a logit's gradient is made of, without signs. */
static double size_of_dlogits(const struct op_case *c, double *const *t, int64_t n) {
    const int64_t hc = c->size[HC], cols = c->size[C];
    double pre = 0, dot;
    for (int64_t s = 0; s < hc; s++) {
        dot = t[DH_PRE] ? fabs(t[DH_PRE][n * hc + s]) : 0;
        for (int64_t i = 0; t[DX_IN] && i < cols; i++)
            dot += fabs(t[DX_IN][n * cols + i] * t[X][(n * hc + s) * cols + i]);
        if (isfinite(dot)) pre = fmax(pre, dot);
    }
    const double post = fabs(post_mult) * largest_of(t[DH_POST] ? t[DH_POST] + n * hc : NULL, hc);
    return fmax(fmax(pre, post) / 4, 2 * largest_of(t[DH_RES] ? t[DH_RES] + n * hc * hc : NULL, hc * hc));
}

static void magnitudes_backward(const struct op_case *c, const struct op_types *types, double *const *t,
                                double *magnitude) {
    const struct mhc_ref p = problem(c, t, X, PHI);
    const int64_t k = k_of(c), m = m_of(c);
    const double alpha = alpha_of(&p), phi = (double)m * largest_of(p.phi, k * m);
    double dx = 0, dphi = 0, db = 0, dalpha = 0;
    (void)types;
    for (int64_t n = 0; n < p.tokens; n++) {
        const double size = size_of_dlogits(c, t, n), rstd = t[KEPT_RSTD][n], x = largest_of(p.x + n * k, k);
        const double mix = (double)m * largest_of(t[KEPT_MIX] + n * m, m);
        const double through = alpha * size * rstd * (phi + x * rstd / (double)k * mix);
        const double beside = 2 * largest_of(t[DX_IN] ? t[DX_IN] + n * p.c : NULL, p.c) +
                              largest_of(t[SO_FAR] ? t[SO_FAR] + n * k : NULL, k);
        if (!isfinite(through + beside)) continue;
        dx = fmax(dx, through + beside);
        dphi += alpha * size * rstd * x, db += size, dalpha += size * mix;
    }
    magnitude[DX] = dx, magnitude[DPHI] = dphi, magnitude[DB] = db;
    for (int part = 0; part < 3; part++) magnitude[DALPHA + part] = dalpha;
}

static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    enum { ROOM = 1 << 13 };
    static double h[3][ROOM], x_in[ROOM], mix[ROOM], rstd[ROOM];
    const struct mhc_ref p = problem(c, t, X, PHI);
    const struct mhc_ref_results to = {h[0], h[1], h[2], x_in, mix, rstd};
    const int64_t streams = p.tokens * p.hc;
    double total = 0;
    (void)types;
    if (p.tokens * m_of(c) > ROOM || p.tokens * k_of(c) > ROOM) return 0;
    mhc_coeffs_forward_ref(&p, &to);
    for (int64_t i = 0; i < streams; i++) {
        if (t[DH_PRE]) total += t[DH_PRE][i] * h[0][i];
        if (t[DH_POST]) total += t[DH_POST][i] * h[1][i];
    }
    for (int64_t i = 0; t[DH_RES] && i < streams * p.hc; i++) total += t[DH_RES][i] * h[2][i];
    for (int64_t i = 0; t[DX_IN] && i < p.tokens * p.c; i++) total += t[DX_IN][i] * x_in[i];
    for (int64_t i = 0; t[SO_FAR] && i < streams * p.c; i++) total += t[SO_FAR][i] * t[X][i];
    return total;
}

static const struct op_gradient gradients[] = {
    {DX, X}, {DPHI, PHI}, {DB, B}, {DALPHA, ALPHA}, {DALPHA + 1, ALPHA + 1}, {DALPHA + 2, ALPHA + 2}};
static const struct op_provocation backward_provocations[] = {
    {"phi of other columns", OP_SHAPE(PHI, 0, 100), LIGER_ERR_SHAPE, {"phi has 100 rows", "a multiple of 24"}},
    {"half a token", OP_SHAPE(KEPT_MIX, 0, 4), LIGER_ERR_SHAPE, {"x has 10 rows", "must have 8, of 2 streams"}},
};

const struct op_cases mhc_coeffs_backward_cases = {
    .name = "mhc_coeffs_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare_backward,
    .call = call_mhc_coeffs_backward,
    .workspace = workspace_mhc_coeffs_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes_backward,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_PROVOCATIONS(backward_provocations),
    OP_BENCH(bench),
};
