/* preference_loss_cases.c - what the drivers need to know about the preference losses.
 *
 * Budgets. A loss is a few roundings of its terms, of a gradient's factors likewise; and what the sums of log-probabilities err by
 * in relation to themselves, times what that changes, which the reference is asked for. */
#include <math.h>
#include <stdlib.h>

#include "liger/ops/preference_loss/preference_loss.h"
#include "liger/ops/preference_loss/preference_loss_ref.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { LOG_PROB, TARGET, NLL_TARGET, REFERENCE, DESIRABLE, KL, UPSTREAM, INPUTS };
enum { LOSS = INPUTS, NLL, SEQUENCE_LOG_PROB, REWARD, D_LOG_PROB, TENSORS };
enum { SEQUENCES, TOKENS, TYPE };
enum { BETA, ALPHA, SMOOTHING, TAU };
enum {
    FULL = 1,
    AVERAGE = 2,
    NO_LABELS = 4,
    ONLY_LOSS = 8,
    ONLY_GRADIENT = 16,
    ONLY_SEQUENCES = 32,
    CERTAIN = 64,
    ENDLESS = 128
};

/* clang-format off */
#define CASE(text, type, sequences, tokens, ...)                                                                       \
    {.label = text, .size = {sequences, tokens, LIGER_PREFERENCE_##type}, .dtypes = 1u << LIGER_F32, .scalar = __VA_ARGS__}
static const struct op_case cases[] = {
    CASE("sigmoid, all",     SIGMOID,    6, 7,   {.3, .5},     .flags = FULL),
    CASE("sigmoid",          SIGMOID,   10, 33,  {.1, 0, .3}),
    CASE("hinge",            HINGE,      6, 11,  {.2}),
    CASE("exo_pair",         EXO_PAIR,   8, 9,   {.3, 0, .1},  .flags = FULL),
    CASE("nca_pair",         NCA_PAIR,   8, 9,   {.3}),
    CASE("robust",           ROBUST,     8, 9,   {.3, .2, .3}, .flags = FULL),
    CASE("robust, 0",        ROBUST,     8, 9,   {.3}),
    CASE("bco_pair",         BCO_PAIR,   8, 9,   {.3}),
    CASE("sppo_hard",        SPPO_HARD,  8, 9,   {.3},         .flags = FULL),
    CASE("apo_zero",         APO_ZERO,   8, 9,   {.3}),
    CASE("apo_down",         APO_DOWN,   8, 9,   {.3}),
    CASE("discopop",         DISCOPOP,   8, 9,   {.05},        .flags = FULL),
    CASE("cpo",              CPO,        6, 17,  {.1, 1}),
    CASE("cpo, smoothed",    CPO,        6, 17,  {.3, 1, .2},  .flags = FULL),
    CASE("cpo, mean",        CPO,        6, 17,  {2, 1},       .flags = AVERAGE),
    CASE("simpo",            SIMPO,      6, 17,  {2, .5, .1},  .flags = FULL),
    CASE("orpo",             ORPO,      12, 8,   {.7, 1},      .flags = FULL),
    CASE("kto",              KTO,        7, 13,  {.2},         .flags = FULL),
    CASE("kto, one",         KTO,        1, 1,   {1}),
    CASE("kto, mean",        KTO,        5, 40,  {2, .5},      .flags = FULL | AVERAGE),
    CASE("a pair of tokens", SIGMOID,    2, 1,   {1, 1}),
    CASE("only loss",        SIGMOID,    4, 5,   {.5, 1},      .flags = ONLY_LOSS),
    CASE("only gradient",    SIGMOID,    4, 5,   {.5, 1},      .flags = ONLY_GRADIENT),
    CASE("only sequences",   SIGMOID,    4, 5,   {.5, 1},      .flags = ONLY_SEQUENCES),
    CASE("negative beta",    SIGMOID,    4, 5,   {-.5, 1}),
    CASE("many pairs",       CPO,      900, 3,   {.5, 1}),
    CASE("long",             SIGMOID,    4, 3001, {.02, 1},    .flags = FULL, .large = true),
    CASE("wide and long",    ORPO,     600, 1030, {.5, 1},     .large = true),
    CASE("no sequences",     SIGMOID,    0, 5,   {.1, 1},      .edge = true, .flags = FULL),
    CASE("no tokens",        ORPO,       4, 0,   {.1, 1},      .edge = true, .flags = FULL),
    CASE("nothing counts",   SIGMOID,    4, 5,   {.1, 1},      .edge = true, .flags = FULL | NO_LABELS),
    CASE("nothing, mean",    SIMPO,      4, 5,   {.1, 1},      .edge = true, .flags = NO_LABELS),
    CASE("nothing, odds",    ORPO,       4, 5,   {.1, 1},      .edge = true, .flags = NO_LABELS),
    CASE("endless upstream", SIGMOID,    4, 5,   {.1},         .edge = true, .flags = FULL | ENDLESS),
    CASE("sure tokens",      ORPO,       4, 5,   {.1},         .edge = true, .flags = CERTAIN),
};
static const struct op_case bench[] = {
    CASE("64x4096", SIGMOID, 64, 4096, {.1, 1}),
};
/* clang-format on */

static struct tensor_spec vector(const char *name, int64_t size, enum tensor_kind kind, bool absent) {
    return (struct tensor_spec){.name = name, .kind = kind, .ndim = 1, .shape = {size}, .absent = absent};
}
static struct tensor_spec matrix(const char *name, int64_t rows, int64_t cols, enum tensor_kind kind, bool absent) {
    return (struct tensor_spec){.name = name, .kind = kind, .ndim = 2, .shape = {rows, cols}, .absent = absent};
}
static struct tensor_spec targets(const char *name, int64_t rows, int64_t cols, int every, bool absent) {
    struct tensor_spec spec = matrix(name, rows, cols, KIND_INDEX, absent);
    spec.values = VALUES_TARGET, spec.spread = 9, spec.offset = -100, spec.ignore_every = every;
    return spec;
}

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t sequences = c->size[SEQUENCES], tokens = c->size[TOKENS];
    const bool bare = !(c->flags & FULL), kto = c->size[TYPE] == LIGER_PREFERENCE_KTO;
    const uint32_t only = c->flags & (ONLY_LOSS | ONLY_GRADIENT | ONLY_SEQUENCES);
    spec[LOG_PROB] = matrix("log_prob", sequences, tokens, KIND_F32, false);
    spec[LOG_PROB].ranges = OP_EVERY_RANGE;
    spec[LOG_PROB].specials = true;
    spec[LOG_PROB].huge = 0x1p40;  /* what is squared stays finite */
    spec[LOG_PROB].tiny = 0x1p-90; /* and so do odds */
    spec[TARGET] = targets("target", sequences, tokens, c->flags & NO_LABELS ? 1 : 4, false);
    spec[NLL_TARGET] = targets("nll_target", sequences / 2, tokens, c->flags & NO_LABELS ? 1 : 3, bare);
    spec[REFERENCE] = vector("reference", sequences, KIND_F32, bare);
    spec[REFERENCE].offset = -4;
    spec[DESIRABLE] = vector("desirable", sequences, KIND_BOOL, bare && !kto);
    spec[DESIRABLE].values = VALUES_INTEGER, spec[DESIRABLE].spread = 2;
    spec[KL] = vector("kl", 1, KIND_F32, bare);
    spec[UPSTREAM] = vector("upstream", 1, KIND_F32, bare);
    spec[UPSTREAM].ndim = 0;
    spec[LOSS] = vector("loss", 1, KIND_F32, only && only != ONLY_LOSS);
    spec[NLL] = vector("nll", 1, KIND_F32, only);
    spec[SEQUENCE_LOG_PROB] = vector("sequence_log_prob", sequences, KIND_F32, only && only != ONLY_SEQUENCES);
    spec[REWARD] = vector("reward", sequences, KIND_F32, only);
    spec[D_LOG_PROB] = matrix("d_log_prob", sequences, tokens, KIND_F32, only && only != ONLY_GRADIENT);
    for (int i = LOSS; i < TENSORS; i++) spec[i].role = ROLE_OUT, spec[i].relative = 1, spec[i].absolute = 16;
}

/* Log-probabilities; answers of unequal length, a chosen and a rejected one empty. What nobody counts is no number. */
static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t sequences = c->size[SEQUENCES], tokens = c->size[TOKENS];
    const double nobodys = types->t == LIGER_DTYPE_NONE ? 5 : NAN; /* of which differences can be taken, if need be */
    if (c->flags & ENDLESS) *t[UPSTREAM] = INFINITY;
    for (int64_t i = 0; i < sequences * tokens; i++) {
        const int64_t s = i / tokens;
        const bool empty = sequences > 4 && (s == 1 || s == sequences - 1);
        const int64_t length = empty ? 0 : tokens - 3 * s % ((tokens + 1) / 2);
        if (i % tokens >= length) t[TARGET][i] = -100;
        t[LOG_PROB][i] = c->flags & CERTAIN ? 0 : -fabs(t[LOG_PROB][i]);
        const bool text = t[NLL_TARGET] && s < sequences / 2 && t[NLL_TARGET][i] >= 0;
        if (t[TARGET][i] < 0 && !text) t[LOG_PROB][i] = nobodys;
    }
}

static void options(const struct op_case *c, void *args) {
    liger_preference_loss_args *to = args;
    to->ignore_index = -100;
    to->type = (int32_t)c->size[TYPE];
    to->average_log_prob = (c->flags & AVERAGE) != 0;
    to->beta = (float)c->scalar[BETA];
    to->alpha = (float)c->scalar[ALPHA];
    to->gamma = 0.5f;
    to->label_smoothing = (float)c->scalar[SMOOTHING];
    to->discopop_tau = c->scalar[TAU] != 0 ? (float)c->scalar[TAU] : 0.05f;
}
OP_DOOR(preference_loss, options)
OP_DOOR_WORKSPACE(preference_loss)

static struct preference_loss_ref problem(const struct op_case *c, double *const *t) {
    const int64_t type = c->size[TYPE];
    const bool simpo = type == LIGER_PREFERENCE_SIMPO, orpo = type == LIGER_PREFERENCE_ORPO;
    return (struct preference_loss_ref){
        .type = (int)type,
        .average = c->flags & AVERAGE || simpo || orpo,
        .sequences = c->size[SEQUENCES],
        .tokens = c->size[TOKENS],
        .ignore_index = -100,
        .beta = op_round(LIGER_F32, c->scalar[BETA]),
        .alpha = op_round(LIGER_F32, c->scalar[ALPHA]),
        .gamma = simpo ? 0.5 : 0,
        .label_smoothing = op_round(LIGER_F32, c->scalar[SMOOTHING]),
        .tau = (double)0.05f,
        .log_prob = t[LOG_PROB],
        .target = t[TARGET],
        .nll_target = t[NLL_TARGET],
        .reference = simpo || orpo || type == LIGER_PREFERENCE_CPO ? NULL : t[REFERENCE],
        .desirable = t[DESIRABLE],
        .kl = t[KL],
        .upstream = t[UPSTREAM],
    };
}
OP_EVALUATED(loss, struct preference_loss_ref, problem(c, t), preference_loss_reference, preference_loss_naive, t[LOSS],
             t[NLL], t[SEQUENCE_LOG_PROB], t[REWARD], t[D_LOG_PROB])

static double loss_of(const struct op_case *c, const struct op_types *types, double *const *t) {
    const struct preference_loss_ref p = problem(c, t);
    double loss = 0;
    (void)types;
    preference_loss_reference(&p, &loss, NULL, NULL, NULL, NULL);
    return p.upstream ? loss * *p.upstream : loss;
}

/* What results change by, relative to a change of all log-probabilities of the first or of the second half. */
static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    const double step = 0x1p-12;
    const int64_t count = c->size[SEQUENCES] * c->size[TOKENS], middle = c->size[SEQUENCES] / 2 * c->size[TOKENS];
    const int64_t sizes[] = {1, 1, c->size[SEQUENCES], c->size[SEQUENCES], count};
    double *other[TENSORS];
    for (int i = 0; i < TENSORS; i++) other[i] = t[i];
    other[LOG_PROB] = malloc(sizeof(double) * (size_t)(count + 1));
    for (int i = LOSS; i < TENSORS; i++) {
        if (t[i] != NULL) other[i] = malloc(sizeof(double) * (size_t)(sizes[i - LOSS] + 1));
        for (int64_t k = 0; t[i] && k < sizes[i - LOSS]; k++) op_raise(&magnitude[i], fabs(t[i][k]));
    }
    for (int half = 0; half < 2; half++) {
        for (int64_t k = 0; k < count; k++)
            other[LOG_PROB][k] = t[LOG_PROB][k] * (half == (k >= middle) ? 1 + step : 1);
        reference_loss(c, types, other);
        for (int i = LOSS; i < TENSORS; i++) {
            double most = 0;
            for (int64_t k = 0; t[i] && k < sizes[i - LOSS]; k++) op_raise(&most, fabs(other[i][k] - t[i][k]) / step);
            magnitude[i] += most;
        }
    }
    free(other[LOG_PROB]);
    for (int i = LOSS; i < TENSORS; i++)
        if (t[i] != NULL) free(other[i]);
}

static void to_kto(struct op_call *call) { call->c.size[TYPE] = LIGER_PREFERENCE_KTO; }
static void to_robust(struct op_call *call) { call->c.size[TYPE] = LIGER_PREFERENCE_ROBUST; }
static void to_discopop(struct op_call *call) { call->c.size[TYPE] = LIGER_PREFERENCE_DISCOPOP; }
/* clang-format off */
static const struct op_provocation provocations[] = {
    {"odd",              OP_SHAPE(LOG_PROB, 0, 5),   LIGER_ERR_SHAPE,    {"log_prob has 5 sequences"}},
    {"texts",            OP_SHAPE(NLL_TARGET, 0, 4), LIGER_ERR_SHAPE,    {"nll_target: shape[0] is 4", "3"}},
    {"labels of KTO",    OP_ABSENT(DESIRABLE),       LIGER_ERR_ARGUMENT, {"desirable is required"}, to_kto},
    {"EXO_PAIR",         OP_SIZE(TYPE, LIGER_PREFERENCE_EXO_PAIR), LIGER_ERR_ARGUMENT, {"label_smoothing is 0", "between 0 and 1"}},
    {"ROBUST",           OP_SCALAR(SMOOTHING, .5),   LIGER_ERR_ARGUMENT, {"label_smoothing is 0.5", "less than 0.5"}, to_robust},
    {"DISCOPOP",         OP_SCALAR(TAU, -1),         LIGER_ERR_ARGUMENT, {"discopop_tau is -1"}, to_discopop},
};
/* clang-format on */

static const struct op_gradient gradients[] = {{D_LOG_PROB, LOG_PROB}};

const struct op_cases preference_loss_cases = {
    .name = "preference_loss",
    .tensor_count = TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_preference_loss,
    .workspace = workspace_preference_loss,
    .reference = reference_loss,
    .naive = naive_loss,
    .magnitudes = magnitudes,
    .loss = loss_of,
    OP_GRADIENTS(gradients),
    OP_PROVOCATIONS(provocations),
    OP_BENCH(bench),
};
