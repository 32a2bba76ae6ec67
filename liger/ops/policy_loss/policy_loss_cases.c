/* policy_loss_cases.c - what the drivers need to know about a policy's loss.
 *
 * Budgets. A gradient takes a dozen roundings beside those of its exponentials, whose arguments are below 3 here; of a loss
 * the errors follow what is added up. VESPO's exponent is steep: the error of its φ is that of u times k - λ·e^u. */
#include <math.h>
#include <string.h>

#include "liger/ops/policy_loss/policy_loss.h"
#include "liger/ops/policy_loss/policy_loss_ref.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { SEQUENCES, TOKENS, TYPE };
enum {
    WHOLE = 1, /* level SEQUENCE */
    NO_MASK = 2,
    NO_OLD = 4,
    NO_REF = 8,
    NO_RATIO = 16,
    ONE_RATIO = 32,
    NO_ITEMS = 64,
    DELTA = 128, /* of VESPO the least λ */
    NO_KL = 256,
    CORRECTED = 512,
    NO_GRADIENT = 1024,
    ONLY_GRADIENT = 2048,
    NONE_COUNTS = 4096,
    FAR = 8192,   /* weights that overflow; without OLD a reference that is far */
    RARE = 16384, /* tokens that the policy has unlearned: e^(q - p) overflows, its product with w does not */
    ALONE = NO_MASK | NO_OLD | NO_REF | NO_RATIO | NO_ITEMS
};
enum { SPOILED = 100 }; /* a type more than this: with a number that the type refuses */

enum { GRPO, BNPO, DR_GRPO, DAPO, LUSPO, CISPO, SAPO, VESPO };

/* clang-format off */
static const struct op_case cases[] = {
    {"GRPO 6x7",                  {6, 7, GRPO}},
    {"GRPO 1x1",                  {1, 1, GRPO}},
    {"GRPO 5x33 alone",           {5, 33, GRPO},      .flags = ALONE | NO_KL},
    {"GRPO 9x40 delta",           {9, 40, GRPO},      .flags = DELTA | NO_ITEMS},
    {"GRPO 12x17 of sequences",   {12, 17, GRPO},     .flags = WHOLE | ONE_RATIO},
    {"GRPO 3x20 nothing counts",  {3, 20, GRPO},      .flags = NONE_COUNTS},
    {"GRPO 4x31 no gradient",     {4, 31, GRPO},      .flags = NO_GRADIENT},
    {"GRPO 4x31 only gradient",   {4, 31, GRPO},      .flags = ONLY_GRADIENT | CORRECTED},
    {"BNPO 6x32",                 {6, 32, BNPO},      .flags = CORRECTED},
    {"BNPO 11x9 of sequences",    {11, 9, BNPO},      .flags = WHOLE | CORRECTED | DELTA},
    {"DR_GRPO 6x31",              {6, 31, DR_GRPO},   .flags = NO_MASK | ONE_RATIO},
    {"DR_GRPO 8x5 of sequences",  {8, 5, DR_GRPO},    .flags = WHOLE | NO_KL | NO_RATIO},
    {"DAPO 7x35",                 {7, 35, DAPO}},
    {"DAPO 7x37 no items",        {7, 37, DAPO},      .flags = NO_ITEMS | CORRECTED | NO_OLD},
    {"DAPO 3x64 no reference",    {3, 64, DAPO},      .flags = NO_REF | CORRECTED},
    {"DAPO 3x20 nothing counts",  {3, 20, DAPO},      .flags = NONE_COUNTS | NO_ITEMS | WHOLE},
    {"DAPO 9x65 of sequences",    {9, 65, DAPO},      .flags = WHOLE},
    {"LUSPO 5x23",                {5, 23, LUSPO},     .flags = DELTA},
    {"LUSPO 12x9 of sequences",   {12, 9, LUSPO},     .flags = WHOLE | CORRECTED},
    {"LUSPO 8x30 one number",     {8, 30, LUSPO},     .flags = WHOLE | NO_KL | ONE_RATIO},
    {"CISPO 6x41",                {6, 41, CISPO}},
    {"CISPO 5x8 one ratio",       {5, 8, CISPO},      .flags = ONE_RATIO | NO_KL | NO_ITEMS},
    {"SAPO 6x29",                 {6, 29, SAPO},      .flags = CORRECTED},
    {"SAPO 5x16 no old",          {5, 16, SAPO},      .flags = NO_OLD | NO_KL | NO_RATIO},
    {"SAPO 4x7 far",              {4, 7, SAPO},       .flags = NO_KL | NO_MASK | FAR},
    {"BNPO 4x7 far",              {4, 7, BNPO},       .flags = NO_OLD | NO_RATIO | CORRECTED | FAR},
    {"BNPO 9x1 of sequences, far", {9, 1, BNPO},      .flags = NO_OLD | NO_RATIO | WHOLE | CORRECTED | FAR},
    {"LUSPO 9x1 of sequences, far", {9, 1, LUSPO},    .flags = NO_OLD | NO_RATIO | WHOLE | CORRECTED | FAR},
    {"BNPO 4x7 far, rarely sampled", {4, 7, BNPO},    .flags = NO_RATIO | CORRECTED | RARE},
    {"VESPO 8x12",                {8, 12, VESPO}},
    {"VESPO 7x14 one ratio",      {7, 14, VESPO},     .flags = ONE_RATIO | NO_ITEMS | CORRECTED},
    {"VESPO 6x19 no ratio",       {6, 19, VESPO},     .flags = NO_RATIO | NO_KL | DELTA},
    {"VESPO 6x11 no old",         {6, 11, VESPO},     .flags = NO_OLD | NO_REF},
    {"DAPO 1100x3",               {1100, 3, DAPO}},
    {"SAPO 3x1000",               {3, 1000, SAPO}},
    {"GRPO 16x4099 of sequences", {16, 4099, GRPO},   .flags = WHOLE, .large = true},
    {"DAPO 2x70001",              {2, 70001, DAPO},   .flags = NO_ITEMS, .large = true},
    {"no sequences",              {0, 9, DAPO},       .edge = true},
    {"no tokens",                 {5, 0, GRPO},       .edge = true},
    {"no tokens of sequences",    {5, 0, LUSPO},      .flags = WHOLE, .edge = true},
};
static const struct op_case bench[] = {
    {"DAPO 64x8192",              {64, 8192, DAPO}},
    {"GRPO 64x8192 of sequences", {64, 8192, GRPO},   .flags = WHOLE},
};
/* clang-format on */

enum { P, MASK, ADVANTAGE, OLD, REFERENCE, RATIO, ITEMS, UPSTREAM, LOSS, KL, CLIP_RATIO, D, HELD, TENSORS };

static struct tensor_spec tokens_of(const struct op_case *c, const char *name, enum tensor_role role, uint32_t absent) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_F32,
                                .spread = 0.3,
                                .absent = (c->flags & absent) != 0,
                                .ndim = 2,
                                .shape = {c->size[SEQUENCES], c->size[TOKENS]},
                                .gaps = true,
                                .specials = role == ROLE_IN};
}

static struct tensor_spec scalar_of(const struct op_case *c, const char *name, uint32_t absent) {
    return (struct tensor_spec){.name = name,
                                .role = ROLE_OUT,
                                .kind = KIND_F32,
                                .absent = (c->flags & absent) != 0,
                                .relative = 1,
                                .absolute = 8};
}

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    spec[P] = tokens_of(c, "log_prob", ROLE_IN, 0);
    spec[P].spread = 0.5, spec[P].offset = -2;
    spec[MASK] = tokens_of(c, "mask", ROLE_IN, NO_MASK);
    spec[MASK].kind = KIND_BOOL, spec[MASK].values = VALUES_INTEGER, spec[MASK].spread = 2;
    spec[MASK].specials = false;
    spec[ADVANTAGE] = op_parameter("advantage", ROLE_IN, c->size[SEQUENCES], false);
    spec[ADVANTAGE].kind = KIND_F32, spec[ADVANTAGE].values = VALUES_NORMAL;
    spec[ADVANTAGE].ranges = OP_EVERY_RANGE, spec[ADVANTAGE].huge = 0x1p40;
    spec[OLD] = tokens_of(c, "old_log_prob", ROLE_IN, NO_OLD);
    spec[REFERENCE] = tokens_of(c, "ref_log_prob", ROLE_IN, NO_REF);
    spec[RATIO] = tokens_of(c, "ratio", ROLE_IN, NO_RATIO);
    spec[RATIO].values = VALUES_POSITIVE;
    if (c->flags & ONE_RATIO) spec[RATIO].shape[1] = 1;
    spec[ITEMS] = scalar_of(c, "num_items", NO_ITEMS);
    spec[ITEMS].role = ROLE_IN, spec[ITEMS].values = VALUES_INTEGER;
    spec[ITEMS].spread = 9, spec[ITEMS].offset = 40;
    spec[UPSTREAM] = scalar_of(c, "upstream", NO_ITEMS);
    spec[UPSTREAM].role = ROLE_IN;
    spec[LOSS] = scalar_of(c, "loss", ONLY_GRADIENT);
    spec[LOSS].steps =
        c->size[TYPE] == LUSPO ? (double)c->size[TOKENS] : 2; /* terms and their products, times lengths */
    spec[KL] = scalar_of(c, "kl", ONLY_GRADIENT);
    spec[CLIP_RATIO] = scalar_of(c, "clip_ratio", ONLY_GRADIENT);
    spec[D] = tokens_of(c, "d_log_prob", ROLE_OUT, NO_GRADIENT);
    spec[D].relative = 1, spec[D].absolute = 8, spec[D].steps = 2;
    spec[HELD] = tokens_of(c, "log_prob before it was moved", ROLE_IN, 0);
    spec[HELD].specials = false;
}

/* The others are near the policy; whole sequences leave the bounds on both sides, or have no token that counts. */
static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t at = 0; at < c->size[SEQUENCES] * c->size[TOKENS]; at++) {
        const int64_t i = at / c->size[TOKENS];
        t[HELD][at] = t[P][at];
        if (t[OLD]) t[OLD][at] += t[P][at] + (c->flags & WHOLE ? 0.35 * (double)(i % 3 - 1) : 0);
        if (c->flags & FAR && t[OLD] && at % 3 == 0) t[OLD][at] -= 100;
        if (t[REFERENCE]) t[REFERENCE][at] += t[P][at] + (c->flags & FAR && at % 3 == 1 ? 12 : 0);
        if (c->flags & RARE && at % 2) t[OLD][at] = t[P][at] + 95, t[REFERENCE][at] = t[P][at] + 92;
        if (t[MASK] && (c->flags & NONE_COUNTS || i % 5 == 4)) t[MASK][at] = 0;
    }
}

static liger_policy_loss_args args_of(const struct op_case *c) {
    liger_policy_loss_args args = LIGER_POLICY_LOSS_ARGS_INIT;
    const bool spoiled = c->size[TYPE] >= SPOILED;
    args.loss_type = (int32_t)(c->size[TYPE] % SPOILED);
    args.level = c->flags & WHOLE || (spoiled && args.loss_type == CISPO) ? LIGER_POLICY_SEQUENCE : LIGER_POLICY_TOKEN;
    args.beta = c->flags & NO_KL ? 0.0f : 0.3f;
    args.epsilon_high = args.loss_type == CISPO ? 1.2f : 0.28f;
    args.delta = c->flags & DELTA ? 1.1f : 0.0f;
    args.corrects_kl = (c->flags & CORRECTED) != 0;
    args.max_completion_length = spoiled ? 0 : 50;
    if (c->flags & DELTA) args.vespo_lambda_neg = 0.0f;
    args.sapo_temperature_neg = spoiled ? 0.0f : 1.3f;
    return args;
}
static void options(const struct op_case *c, void *args) {
    const liger_policy_loss_args numbers = args_of(c);
    memcpy(args, &numbers, sizeof numbers);
}

OP_DOOR(policy_loss, options)
OP_DOOR_WORKSPACE(policy_loss)

static struct policy_loss_ref problem(const struct op_case *c, double *const *t) {
    return (struct policy_loss_ref){
        .sequences = c->size[SEQUENCES],
        .tokens = c->size[TOKENS],
        .ratio_cols = c->flags & ONE_RATIO ? 1 : c->size[TOKENS],
        .args = args_of(c),
        .log_prob = t[P],
        .mask = t[MASK],
        .advantage = t[ADVANTAGE],
        .old_log_prob = t[OLD],
        .ref_log_prob = t[REFERENCE],
        .ratio = t[RATIO],
        .num_items = t[ITEMS],
        .upstream = t[UPSTREAM],
        .held = t[P],
    };
}

OP_EVALUATED(loss, struct policy_loss_ref, problem(c, t), policy_loss_reference, policy_loss_naive, t[LOSS], t[KL],
             t[CLIP_RATIO], t[D])

static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    struct policy_loss_ref p = problem(c, t);
    double sum;
    (void)types;
    p.held = t[HELD];
    policy_loss_reference(&p, &sum, NULL, NULL, NULL);
    return t[UPSTREAM] ? sum * *t[UPSTREAM] : sum;
}

/* What a loss adds up, without its signs. */
static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    (void)types;
    for (int64_t i = 0; i < c->size[SEQUENCES]; i++) op_raise(&magnitude[LOSS], 2 * fabs(t[ADVANTAGE][i]));
    if (t[KL]) magnitude[LOSS] += *t[KL];
}

static const struct op_gradient gradients[] = {{D, P}};

static const struct op_provocation provocations[] = {
    {"weights of sequences in CISPO", OP_SIZE(TYPE, SPOILED + CISPO), LIGER_ERR_ARGUMENT, {"level", "1", "5"}},
    {"no length in DR_GRPO", OP_SIZE(TYPE, SPOILED + DR_GRPO), LIGER_ERR_ARGUMENT, {"max_completion_length", "0"}},
    {"a temperature of 0 in SAPO", OP_SIZE(TYPE, SPOILED + SAPO), LIGER_ERR_ARGUMENT, {"temperatures", "1 and 0"}},
    {"a ratio of two columns", OP_SHAPE(RATIO, 1, 2), LIGER_ERR_SHAPE, {"ratio", "2", "7"}},
};

/* The workspace is one of sequences: a caller may ask before there are numbers. */
static const char *asked_by_sizes(struct op_run *run) {
    const int64_t shape[] = {run->c.size[SEQUENCES], run->c.size[TOKENS]};
    liger_policy_loss_args args = LIGER_POLICY_LOSS_ARGS_INIT;
    size_t usual = 0, bytes = 0;
    args.log_prob = liger_tensor_contiguous(run, LIGER_F32, 2, shape);
    if (liger_policy_loss_workspace(run->context, &args, &usual) != LIGER_OK) return liger_last_error();
    for (int type = LIGER_POLICY_GRPO; type <= LIGER_POLICY_VESPO; type++) {
        args.loss_type = type;
        args.level = LIGER_POLICY_SEQUENCE;
        if (liger_policy_loss_workspace(run->context, &args, &bytes) != LIGER_OK) return liger_last_error();
        if (bytes != usual) return "another workspace for another type";
    }
    return NULL;
}

static const struct op_property properties[] = {{"a workspace by sizes", asked_by_sizes}};

const struct op_cases policy_loss_cases = {
    .name = "policy_loss",
    .tensor_count = TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_policy_loss,
    .workspace = workspace_policy_loss,
    .reference = reference_loss,
    .naive = naive_loss,
    .magnitudes = magnitudes,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_PROVOCATIONS(provocations),
    OP_PROPERTIES(properties),
    OP_BENCH(bench),
};
