/* jsd.c - the door of the generalized Jensen-Shannon divergence: what its function takes, and the problem that a kernel gets. */
#include "liger/ops/jsd/jsd.h"

#include "liger/ops/jsd/jsd_problem.h"
#include "liger/ops/kl_div/divergence_problem.h"

/* clang-format off */
#define DOOR jsd, jsd_problem
static const struct door_rule rules[] = {
    DIVERGENCE_RULES,
    {FLOAT(beta), BETWEEN(0, 1), TO(beta)},
    {RESERVED(reserved)},
};
#undef DOOR
/* clang-format on */

static void complete(struct jsd_problem *problem) { problem->mixture = mixture_of(problem->beta); }

DIVERGENCE_DOOR_AND(jsd, rules, complete(&problem))
