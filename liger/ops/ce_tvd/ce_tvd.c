/* ce_tvd.c - the door of ce_tvd: what its functions take, and the problem that a kernel gets. */
#include "liger/ops/ce_tvd/ce_tvd.h"

#include "liger/core/rows_door.h"
#include "liger/ops/ce_tvd/ce_tvd_problem.h"

enum { ROWS = 1, VOCAB };

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
    {INT64(ignore_index), TO(ignore_index)},
};
#undef DOOR

#define DOOR ce_tvd_backward, ce_tvd_backward_problem
static const struct door_rule backward_rules[] = {
    OPERANDS,
    SOFTMAXES(IN), OF_ROWS(IN, sigma),
    {ARG(dce),      IN,  DTYPE(F32), VECTOR(ROWS),         TO_POINTER(dce),  OPTIONAL},
    {ARG(dtvd),     IN,  DTYPE(F32), VECTOR(ROWS),         TO_POINTER(dtvd), OPTIONAL},
    {ARG(dstudent), OUT, T,          LIKE(student_logits), TO_ROWS(dstudent), MAY_BE(student_logits, teacher_logits)},
    {INT64(ignore_index), TO(ignore_index)},
};
#undef DOOR
/* clang-format on */

ROWS_DOOR(ce_tvd_forward, forward_rules)

const struct door ce_tvd_backward_door = DOOR_OF(ce_tvd_backward, backward_rules);

/* Not all that it takes must be there. */
liger_status liger_ce_tvd_backward(liger_context *context, const liger_ce_tvd_backward_args *given,
                                   liger_stream stream) {
    liger_ce_tvd_backward_args args;
    struct ce_tvd_backward_problem problem = {.dce = NULL};
    struct door_call call;
    LIGER_TRY(door_enter(&call, &ce_tvd_backward_door, context, given, &args, &problem));
    if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;
    return context->kernels->ce_tvd_backward(context, &problem, stream);
}
