/* sparsemax.c - the door of sparsemax: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/sparsemax/sparsemax.h"

#include "liger/core/rows_door.h"
#include "liger/ops/sparsemax/sparsemax_problem.h"

enum { ROWS = 1, COLS, WORDS };

static liger_status bind_words(struct door_call *call) {
    call->bound |= 1u << WORDS;
    call->size[WORDS] = support_words(call->size[COLS]);
    return LIGER_OK;
}

/* clang-format off */
#define DOOR sparsemax_forward, sparsemax_forward_problem
static const struct door_rule forward_rules[] = {
    {ARG(x),       IN,  FLOAT_T,    FOLDED(ROWS, COLS),   TO_ROWS(x)},
    {ARG(y),       OUT, T,          LIKE(x),              TO_ROWS(y),         MAY_BE(x)},
    {CHECK(bind_words)},
    {ARG(support), OUT, DTYPE(I32), DIMS(2, ROWS, WORDS), TO_POINTER(support)},
};
#undef DOOR

#define DOOR sparsemax_backward, sparsemax_backward_problem
static const struct door_rule backward_rules[] = {
    {ARG(dy),      IN,  FLOAT_T,    FOLDED(ROWS, COLS),   TO_ROWS(dy)},
    {CHECK(bind_words)},
    {ARG(support), IN,  DTYPE(I32), DIMS(2, ROWS, WORDS), TO_POINTER(support)},
    {ARG(dx),      OUT, T,          LIKE(dy),             TO_ROWS(dx),        MAY_BE(dy)},
};
#undef DOOR
/* clang-format on */

ROWS_DOOR(sparsemax_forward, forward_rules)
ROWS_DOOR(sparsemax_backward, backward_rules)
