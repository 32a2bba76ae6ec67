/* tvd.c - the door of the total variation distance: what its function takes, and the problem that a kernel gets. */
#include "liger/ops/tvd/tvd.h"

#include "liger/ops/kl_div/divergence_problem.h"
#include "liger/ops/tvd/tvd_problem.h"

/* clang-format off */
#define DOOR tvd, tvd_problem
static const struct door_rule rules[] = {
    DIVERGENCE_RULES,
    {RESERVED(reserved)},
};
#undef DOOR
/* clang-format on */

DIVERGENCE_DOOR(tvd, rules)
