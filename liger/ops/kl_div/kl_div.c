/* kl_div.c - the door of the Kullback-Leibler divergence: what its function takes, and the problem that a kernel gets. */
#include "liger/ops/kl_div/kl_div.h"

#include "liger/ops/kl_div/divergence_problem.h"
#include "liger/ops/kl_div/kl_div_problem.h"

/* clang-format off */
#define DOOR kl_div, kl_div_problem
static const struct door_rule rules[] = {
    DIVERGENCE_RULES,
    {INT32(log_target), BETWEEN(0, 1), TO(log_target)},
    {FLOAT(eps),        AT_LEAST(0),   TO(eps)},
    {RESERVED(reserved)},
};
#undef DOOR
/* clang-format on */

DIVERGENCE_DOOR(kl_div, rules)
