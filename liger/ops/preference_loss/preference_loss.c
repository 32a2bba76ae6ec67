/* preference_loss.c - the door of the preference losses: what the function takes, and the problem that a kernel gets. */
#include "liger/ops/preference_loss/preference_loss.h"

#include "liger/core/door_rules.h"
#include "liger/ops/preference_loss/preference_loss_problem.h"

enum { SEQUENCES = 1, TOKENS, PAIRS };

#define DOOR preference_loss, preference_loss_problem

static size_t sums_bytes(const struct door_call *call) {
    return (size_t)call->size[SEQUENCES] * sizeof(struct preference_sums);
}

static liger_status check_pairs(struct door_call *call) {
    const liger_preference_loss_args *args = call->args;
    call->size[PAIRS] = call->size[SEQUENCES] / 2;
    call->bound |= 1u << PAIRS;
    LIGER_REQUIRE(args->type == LIGER_PREFERENCE_KTO || call->size[SEQUENCES] % 2 == 0, LIGER_ERR_SHAPE,
                  "preference_loss: log_prob has %lld sequences, but must have as many rejected as chosen ones",
                  (long long)call->size[SEQUENCES]);
    return LIGER_OK;
}

static liger_status check_type(struct door_call *call) {
    const liger_preference_loss_args *args = call->args;
    const float s = args->label_smoothing;
    if (call->query) return LIGER_OK;
    LIGER_REQUIRE(args->type != LIGER_PREFERENCE_KTO || door_has(call, BIT(desirable)), LIGER_ERR_ARGUMENT,
                  "preference_loss: desirable is required for KTO, but its data is NULL");
    LIGER_REQUIRE(args->type != LIGER_PREFERENCE_EXO_PAIR || (s > 0 && s < 1), LIGER_ERR_ARGUMENT,
                  "preference_loss: label_smoothing is %g, but must be between 0 and 1 for EXO_PAIR", (double)s);
    LIGER_REQUIRE(args->type != LIGER_PREFERENCE_ROBUST || s < 0.5f, LIGER_ERR_ARGUMENT,
                  "preference_loss: label_smoothing is %g, but must be less than 0.5 for ROBUST", (double)s);
    LIGER_REQUIRE(args->type != LIGER_PREFERENCE_DISCOPOP || args->discopop_tau > 0, LIGER_ERR_ARGUMENT,
                  "preference_loss: discopop_tau is %g, but must be larger than 0", (double)args->discopop_tau);
    return LIGER_OK;
}

/* clang-format off */
#define RESULT(field, shape) {ARG(field), OUT, DTYPE(F32), shape, TO_POINTER(field), OPTIONAL}
static const struct door_rule rules[] = {
    {ARG(log_prob), IN, DTYPE(F32), DIMS(2, SEQUENCES, TOKENS), TO_POINTER(log_prob)},
    {CHECK(check_pairs)},
    {ARG(target),   IN, INDEX,      DIMS(2, SEQUENCES, TOKENS), TO_POINTER(target), DTYPE_TO(target_dtype)},
    {INT32(type),   BETWEEN(0, LIGER_PREFERENCE_KTO), TO(type)},
    {ARG(nll_target), IN, INDEX,       DIMS(2, PAIRS, TOKENS), TO_POINTER(nll_target), DTYPE_TO(nll_target_dtype), OPTIONAL},
    {ARG(reference),  IN, DTYPE(F32),  VECTOR(SEQUENCES),      TO_POINTER(reference),  OPTIONAL},
    {ARG(desirable),  IN, DTYPE(BOOL), VECTOR(SEQUENCES),      TO_POINTER(desirable),  OPTIONAL},
    {ARG(kl),         IN, DTYPE(F32),  ELEMENT,                TO_POINTER(kl),         OPTIONAL},
    {ARG(upstream),   IN, DTYPE(F32),  ELEMENT,                TO_POINTER(upstream),   OPTIONAL},
    {INT64(ignore_index),     TO(ignore_index)},
    {INT32(average_log_prob), BETWEEN(0, 1)},
    {FLOAT(alpha),            FINITE, TO(alpha)},
    {FLOAT(beta),             FINITE, TO(beta)},
    {FLOAT(gamma),            FINITE, TO(gamma)},
    {FLOAT(label_smoothing),  BETWEEN(0, 1), TO(label_smoothing)},
    {FLOAT(discopop_tau),     FINITE, TO(tau)},
    {RESERVED(reserved)},
    {CHECK(check_type)},
    RESULT(loss, ELEMENT), RESULT(nll, ELEMENT),
    RESULT(sequence_log_prob, VECTOR(SEQUENCES)), RESULT(reward, VECTOR(SEQUENCES)),
    {ARG(d_log_prob), OUT, DTYPE(F32), LIKE(log_prob), TO_POINTER(d_log_prob), OPTIONAL, MAY_BE(log_prob)},
    {WORKSPACE(sums_bytes, log_prob), TO(sums)},
};
#undef DOOR
/* clang-format on */

const struct door preference_loss_door = DOOR_OF(preference_loss, rules);

liger_status liger_preference_loss(liger_context *context, const liger_preference_loss_args *given,
                                   liger_stream stream) {
    liger_preference_loss_args args;
    struct preference_loss_problem p = {.reference = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &preference_loss_door, context, given, &args, &p));
    const bool simpo = p.type == LIGER_PREFERENCE_SIMPO, orpo = p.type == LIGER_PREFERENCE_ORPO;
    const bool robust = p.type == LIGER_PREFERENCE_ROBUST, pairs = p.type != LIGER_PREFERENCE_KTO;
    const double s = p.type == LIGER_PREFERENCE_SIGMOID ? 0.0 : (double)p.label_smoothing;
    p.sequences = call.size[SEQUENCES];
    p.tokens = call.size[TOKENS];
    p.terms = pairs ? call.size[PAIRS] : p.sequences;
    p.texts = pairs && (p.alpha != 0 || p.nll) ? call.size[PAIRS] : 0;
    p.average = args.average_log_prob || simpo || orpo;
    p.right = (float)(robust ? (1 - s) / (1 - 2 * s) : 1 - s);
    p.wrong = (float)(robust ? -s / (1 - 2 * s) : s);
    if (!simpo) p.gamma = 0;
    if (simpo || orpo || p.type == LIGER_PREFERENCE_CPO) p.reference = NULL;
    return context->kernels->preference_loss(context, &p, stream);
}

WORKSPACE_QUERY(preference_loss)
