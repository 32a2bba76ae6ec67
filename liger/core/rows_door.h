/* rows_door.h - functions that need nothing but their table: rows in, rows out. Internal; only doors include it.
 *
 * The problem of such a function has its T, rows and cols (the sizes 1 and 2 of the table) as `dtype`, `rows` and `cols`, and
 * no argument that may be absent. Where rows or columns are none, nothing is done. */
#ifndef LIGER_CORE_ROWS_DOOR_H
#define LIGER_CORE_ROWS_DOOR_H

#include "liger/core/door_rules.h"

/* The door and the public function, after its rules. */
#define ROWS_DOOR(function, rules) ROWS_DOOR_THAT(function, rules, (void)0)
/* Likewise, of a function of single elements: rows that lie in one piece reach the kernel as one. */
#define ELEMENTS_DOOR(function, rules)                                                                                 \
    ROWS_DOOR_THAT(function, rules, door_join_rows(&call, &problem, &problem.rows, &problem.cols))

#define ROWS_DOOR_THAT(function, rules, first)                                                                         \
    const struct door function##_door = DOOR_OF(function, rules);                                                      \
    liger_status liger_##function(liger_context *context, const liger_##function##_args *given, liger_stream stream) { \
        liger_##function##_args args;                                                                                  \
        struct function##_problem problem = {0}; /* an absent argument leaves its field */                             \
        struct door_call call;                                                                                         \
        LIGER_TRY(door_enter(&call, &function##_door, context, given, &args, &problem));                               \
        if (!door_matrix(&call, &problem.dtype, &problem.rows, &problem.cols)) return LIGER_OK;                        \
        first;                                                                                                         \
        return context->kernels->function(context, &problem, stream);                                                  \
    }

#endif
