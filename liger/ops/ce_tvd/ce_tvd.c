/* ce_tvd.c - the door of ce_tvd: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/ce_tvd/ce_tvd.h"

#include "liger/core/rows_door.h"
#include "liger/ops/ce_tvd/ce_tvd_problem.h"

enum { ROWS = 1, VOCAB };

/* The gradient over a row of logits would be where signs are. */
static liger_status check_dstudent(struct door_call *call) {
    const liger_ce_tvd_backward_args *args = call->args;
    const void *const to = args->dstudent.data;
    if (args->has_signs.data == NULL || to == NULL) return LIGER_OK;
    LIGER_REQUIRE(to != args->student_logits.data && to != args->teacher_logits.data, LIGER_ERR_LAYOUT,
                  "%s: dstudent overlaps the logits, but with has_signs it is what the forward call has left",
                  call->door->function);
    return LIGER_OK;
}

/* clang-format off */
#define OPERANDS                                                                                                       \
    {ARG(student_logits), IN, FLOAT_T, DIMS(2, ROWS, SOME(VOCAB)), TO_ROWS(student)},                                  \
    {ARG(teacher_logits), IN, T,       LIKE(student_logits),       TO_ROWS(teacher)},                                  \
    {ARG(target),         IN, INDEX,   VECTOR(ROWS),               TO_POINTER(target), DTYPE_TO(target_dtype)}
#define OF_ROWS(role, field) {ARG(field), role, DTYPE(F32), VECTOR(ROWS), TO_POINTER(field)}
#define SOFTMAXES(role)                                                                                                \
    OF_ROWS(role, student_max), OF_ROWS(role, student_log_sum), OF_ROWS(role, teacher_max), OF_ROWS(role, teacher_log_sum)

#define DOOR ce_tvd_forward, ce_tvd_forward_problem
static const struct door_rule forward_rules[] = {
    OPERANDS,
    OF_ROWS(OUT, ce), OF_ROWS(OUT, tvd), SOFTMAXES(OUT), OF_ROWS(OUT, sigma),
    {ARG(dstudent),  OUT, T,          LIKE(student_logits), TO_ROWS(dstudent),     ONLY_WITH(has_signs)},
    {ARG(has_signs), OUT, DTYPE(I32), VECTOR(ROWS),         TO_POINTER(has_signs), ONLY_WITH(dstudent)},
    {INT64(ignore_index), TO(ignore_index)},
};
#undef DOOR

#define DOOR ce_tvd_backward, ce_tvd_backward_problem
static const struct door_rule backward_rules[] = {
    OPERANDS,
    SOFTMAXES(IN), OF_ROWS(IN, sigma),
    {ARG(dce),       IN,  DTYPE(F32), VECTOR(ROWS),         TO_POINTER(dce),  OPTIONAL},
    {ARG(dtvd),      IN,  DTYPE(F32), VECTOR(ROWS),         TO_POINTER(dtvd), OPTIONAL},
    {ARG(has_signs), IN,  DTYPE(I32), VECTOR(ROWS),         TO_POINTER(has_signs), OPTIONAL},
    {ARG(dstudent),  OUT, T,          LIKE(student_logits), TO_ROWS(dstudent), MAY_BE(student_logits, teacher_logits)},
    {CHECK(check_dstudent)},
    {INT64(ignore_index), TO(ignore_index)},
};
#undef DOOR
/* clang-format on */

ROWS_DOOR(ce_tvd_forward, forward_rules)
ROWS_DOOR(ce_tvd_backward, backward_rules)
