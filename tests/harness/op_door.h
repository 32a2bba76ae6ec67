/* op_door.h - a public function called through its table: tensors go by their names, the room fills in its options.
 *
 *   static void forward_options(const struct op_case *c, void *args) { ... }       numbers of the args struct
 *   OP_DOOR(rope_forward, forward_options)                                         call_rope_forward; NULL: no options
 *   OP_DOOR_SCALARS(rms_norm_backward, NULL, "offset", "casting")                  scalars 1 and 2 of a case are these
 *   OP_DOOR_WORKSPACE(rms_norm_backward)                                           workspace_rms_norm_backward
 *
 * Refusals (modes_refusals.c) and permitted aliases come from the table too. */
#ifndef TESTS_HARNESS_OP_DOOR_H
#define TESTS_HARNESS_OP_DOOR_H

#include "tests/harness/door_list.h"
#include "tests/harness/op_cases.h"

typedef void op_options(const struct op_case *c, void *args);

/* A function's entry, and which tensor of the cases stands at which place of the args struct; found at first use. */
struct op_door {
    const struct op_cases *op;
    op_options *options;
    const char *scalar[OP_MAX_SCALARS]; /* the number that a scalar of the case is; NULL: none of this function's */
    const struct door_entry *entry;
    int8_t tensor[32];
};

liger_status op_door_call(struct op_door *door, liger_context *context, const struct op_call *call,
                          liger_stream stream);
liger_status op_door_workspace(struct op_door *door, liger_context *context, const struct op_call *call, size_t *bytes);

/* The aliases that the table permits, or those that the cases name if the function has none; returns how many. */
enum { OP_MOST_ALIASES = 64 };
int op_door_aliases(const struct op_cases *op, struct op_alias *aliases);

#define OP_DOOR(function, fill) OP_DOOR_WITH(function, .options = fill)
#define OP_DOOR_SCALARS(function, ...) OP_DOOR_WITH(function, .scalar = {__VA_ARGS__})
#define OP_DOOR_WITH(function, ...)                                                                                    \
    extern const struct op_cases function##_cases;                                                                     \
    static struct op_door function##_way = {.op = &function##_cases, __VA_ARGS__};                                     \
    static liger_status call_##function(liger_context *context, const struct op_call *call, liger_stream stream) {     \
        return op_door_call(&function##_way, context, call, stream);                                                   \
    }
#define OP_DOOR_WORKSPACE(function)                                                                                    \
    static liger_status workspace_##function(liger_context *context, const struct op_call *call, size_t *bytes) {      \
        return op_door_workspace(&function##_way, context, call, bytes);                                               \
    }

#endif
