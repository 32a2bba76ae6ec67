/* relu_squared.c - the door of relu_squared: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/relu_squared/relu_squared.h"

#include "liger/core/rows_door.h"
#include "liger/ops/relu_squared/relu_squared_problem.h"

enum { ROWS = 1, COLS };

/* clang-format off */
#define DOOR relu_squared_forward, relu_squared_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(x),  IN,  FLOAT_T, FOLDED(ROWS, COLS), TO_ROWS(x)},
    {ARG(y),  OUT, T,       LIKE(x),            TO_ROWS(y), MAY_BE(x)},
};
#undef DOOR

#define DOOR relu_squared_backward, relu_squared_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(dy), IN,  FLOAT_T, FOLDED(ROWS, COLS), TO_ROWS(dy)},
    {ARG(x),  IN,  T,       LIKE(dy),           TO_ROWS(x)},
    {ARG(dx), OUT, T,       LIKE(dy),           TO_ROWS(dx), MAY_BE(dy, x)},
};
#undef DOOR
/* clang-format on */

ELEMENTS_DOOR(relu_squared_forward, forward_rules)
ELEMENTS_DOOR(relu_squared_backward, backward_rules)
