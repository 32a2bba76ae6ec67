/* softmax.c - the door of softmax: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/softmax/softmax.h"

#include "liger/core/rows_door.h"
#include "liger/ops/softmax/softmax_problem.h"

enum { ROWS = 1, COLS };

/* clang-format off */
#define DOOR softmax_forward, softmax_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(x),  IN,  FLOAT_T, FOLDED(ROWS, COLS), TO_ROWS(x)},
    {ARG(y),  OUT, T,       LIKE(x),            TO_ROWS(y), MAY_BE(x)},
};
#undef DOOR

#define DOOR softmax_backward, softmax_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(dy), IN,  FLOAT_T, FOLDED(ROWS, COLS), TO_ROWS(dy)},
    {ARG(y),  IN,  T,       LIKE(dy),           TO_ROWS(y)},
    {ARG(dx), OUT, T,       LIKE(dy),           TO_ROWS(dx), MAY_BE(dy, y)},
};
#undef DOOR
/* clang-format on */

ROWS_DOOR(softmax_forward, forward_rules)
ROWS_DOOR(softmax_backward, backward_rules)
