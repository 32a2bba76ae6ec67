/* policy_loss.c - the door of a policy's loss: what it takes, and the problem that a kernel gets. */
#include "liger/ops/policy_loss/policy_loss.h"

#include "liger/core/door_rules.h"
#include "liger/ops/policy_loss/policy_loss_problem.h"

enum { SEQUENCES = 1, TOKENS, RATIO };

#define ARGS(call) ((const liger_policy_loss_args *)(call)->args)
#define DOOR policy_loss, policy_loss_problem

static liger_status check_numbers(struct door_call *call) {
    const liger_policy_loss_args *args = ARGS(call);
    const char *function = call->door->function;
    if (call->query) return LIGER_OK; /* sizes tell */
    LIGER_REQUIRE(args->level == LIGER_POLICY_TOKEN || args->loss_type <= LIGER_POLICY_LUSPO, LIGER_ERR_ARGUMENT,
                  "%s: level is %d, but loss_type %d has weights of tokens only", function, args->level,
                  args->loss_type);
    LIGER_REQUIRE(args->loss_type != LIGER_POLICY_DR_GRPO || args->max_completion_length > 0, LIGER_ERR_ARGUMENT,
                  "%s: max_completion_length is %lld, but loss_type %d divides by it", function,
                  (long long)args->max_completion_length, args->loss_type);
    const bool temperatures = args->sapo_temperature_pos > 0 && args->sapo_temperature_neg > 0;
    LIGER_REQUIRE(args->loss_type != LIGER_POLICY_SAPO || temperatures, LIGER_ERR_ARGUMENT,
                  "%s: the temperatures of SAPO are %g and %g, but must be larger than 0", function,
                  (double)args->sapo_temperature_pos, (double)args->sapo_temperature_neg);
    return LIGER_OK;
}

static liger_status check_ratio(struct door_call *call) {
    const int64_t cols = call->size[RATIO], tokens = call->size[TOKENS];
    LIGER_REQUIRE(!door_has(call, BIT(ratio)) || cols == 1 || cols == tokens, LIGER_ERR_SHAPE,
                  "%s: ratio has %lld columns, but must have 1 or %lld", call->door->function, (long long)cols,
                  (long long)tokens);
    return LIGER_OK;
}

static size_t workspace_bytes(const struct door_call *call) { return policy_loss_workspace(call->size[SEQUENCES]); }

/* clang-format off */
#define TOKENWISE(field) {ARG(field), IN, DTYPE(F32), LIKE(log_prob), TO_ROWS(field), OPTIONAL}
#define NUMBER(field) {FLOAT(field), FINITE, TO(field)}
static const struct door_rule rules[] = {
    {ARG(log_prob),   IN,  DTYPE(F32),  DIMS(2, SEQUENCES, TOKENS), TO_ROWS(log_prob)},
    {ARG(mask),       IN,  DTYPE(BOOL), LIKE(log_prob),             TO_ROWS(mask), OPTIONAL},
    {ARG(advantage),  IN,  DTYPE(F32),  VECTOR(SEQUENCES),          TO_POINTER(advantage)},
    TOKENWISE(old_log_prob), TOKENWISE(ref_log_prob),
    {ARG(ratio),      IN,  DTYPE(F32),  DIMS(2, SEQUENCES, RATIO),  TO_ROWS(ratio), OPTIONAL},
    {CHECK(check_ratio)},
    {ARG(num_items),  IN,  DTYPE(F32),  ELEMENT,                    TO_POINTER(num_items), OPTIONAL},
    {ARG(upstream),   IN,  DTYPE(F32),  ELEMENT,                    TO_POINTER(upstream), OPTIONAL},
    {ARG(loss),       OUT, DTYPE(F32),  ELEMENT,                    TO_POINTER(loss), OPTIONAL},
    {ARG(kl),         OUT, DTYPE(F32),  ELEMENT,                    TO_POINTER(kl), OPTIONAL},
    {ARG(clip_ratio), OUT, DTYPE(F32),  ELEMENT,                    TO_POINTER(clip_ratio), OPTIONAL},
    {ARG(d_log_prob), OUT, DTYPE(F32),  LIKE(log_prob),             TO_ROWS(d_log_prob), OPTIONAL, MAY_BE(log_prob, old_log_prob, ref_log_prob)},
    {INT64(max_completion_length), AT_LEAST(0), TO(max_completion_length)},
    {INT32(loss_type),   BETWEEN(LIGER_POLICY_GRPO, LIGER_POLICY_VESPO), TO(loss_type)},
    {INT32(level),       BETWEEN(LIGER_POLICY_TOKEN, LIGER_POLICY_SEQUENCE), TO(level)},
    {INT32(corrects_kl), BETWEEN(0, 1), TO(corrects_kl)},
    NUMBER(beta), NUMBER(epsilon_low), NUMBER(epsilon_high),
    {FLOAT(delta), CAP, TO(delta)},
    NUMBER(sapo_temperature_pos), NUMBER(sapo_temperature_neg),
    NUMBER(vespo_k_pos), NUMBER(vespo_lambda_pos), NUMBER(vespo_k_neg), NUMBER(vespo_lambda_neg),
    {CHECK(check_numbers)},
    {RESERVED(reserved)},
    {WORKSPACE(workspace_bytes, log_prob), TO(workspace)},
};
/* clang-format on */

const struct door policy_loss_door = DOOR_OF(policy_loss, rules);

WORKSPACE_QUERY(policy_loss)

liger_status liger_policy_loss(liger_context *context, const liger_policy_loss_args *given, liger_stream stream) {
    liger_policy_loss_args args;
    struct policy_loss_problem problem = {.num_items = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &policy_loss_door, context, given, &args, &problem));
    problem.sequences = call.size[SEQUENCES];
    problem.tokens = call.size[TOKENS];
    problem.ratio_cols = problem.ratio.data ? call.size[RATIO] : 0;
    return context->kernels->policy_loss(context, &problem, stream);
}
