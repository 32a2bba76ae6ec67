/* door_rules.h - the words in which a room's door is written. Internal; only doors include it.
 *
 * Before a table, DOOR names the function and the struct that it lowers to:
 *
 *   #define DOOR swiglu_forward, swiglu_forward_problem
 *   static const struct door_rule forward_rules[] = {
 *       {ARG(gate), IN,  FLOAT_T, FOLDED(ROWS, COLS), TO_ROWS(gate)},
 *       {ARG(up),   IN,  T,       LIKE(gate),         TO_ROWS(up)},
 *       {ARG(y),    OUT, T,       LIKE(gate),         TO_ROWS(y),    MAY_BE(gate, up)},
 *       {FLOAT(gate_multiplier), TO(gate_multiplier)},
 *       ...
 *   };
 *   #undef DOOR
 *   const struct door swiglu_forward_door = DOOR_OF(swiglu_forward, forward_rules);
 *
 * Every field of the struct but `size` has a row. Rows are read from top to bottom: T and the sizes are bound by the first
 * argument that has them. */
#ifndef LIGER_CORE_DOOR_RULES_H
#define LIGER_CORE_DOOR_RULES_H

#include "liger/core/door.h"
#include "liger/core/fail.h"

#define DOOR_OF(function, rules)                                                                                       \
    { #function, sizeof(liger_##function##_args), rules, (int)(sizeof(rules) / sizeof((rules)[0])) }
/* The public query of the bytes that the rules ask for. */
#define WORKSPACE_QUERY(function)                                                                                      \
    liger_status liger_##function##_workspace(liger_context *context, const liger_##function##_args *given,            \
                                              size_t *bytes) {                                                         \
        liger_##function##_args args;                                                                                  \
        return door_workspace(&function##_door, context, given, &args, bytes);                                         \
    }

/* ---- fields ----------------------------------------------------------------------------------------------------- */

#define DOOR_FIELD_(function, problem, field)                                                                          \
    .what = #function ": " #field, .name = sizeof(#function ": ") - 1,                                                 \
    .offset = offsetof(liger_##function##_args, field), .bytes = sizeof(((liger_##function##_args *)0)->field)
#define DOOR_FIELD(door, field) DOOR_FIELD_(door, field)
#define DOOR_AT_(function, problem, field)                                                                             \
    ((offsetof(liger_##function##_args, field) - sizeof(size_t)) / sizeof(liger_tensor))
#define DOOR_AT(door, field) DOOR_AT_(door, field)
#define DOOR_IN_PROBLEM_(function, problem, field) offsetof(struct problem, field)
#define DOOR_IN_PROBLEM(door, field) DOOR_IN_PROBLEM_(door, field)

#define ARG(field) .kind = DOOR_TENSOR, DOOR_FIELD(DOOR, field), .at = DOOR_AT(DOOR, field)
#define FLOAT(field) .kind = DOOR_FLOAT, DOOR_FIELD(DOOR, field)
#define INT32(field) .kind = DOOR_INT32, DOOR_FIELD(DOOR, field)
#define INT64(field) .kind = DOOR_INT64, DOOR_FIELD(DOOR, field)
#define RESERVED(field) .kind = DOOR_RESERVED, DOOR_FIELD(DOOR, field)
/* bytes(call) says how many; a query must have the tensors that are named. */
#define WORKSPACE(bytes_, ...)                                                                                         \
    .kind = DOOR_WORKSPACE, .role = DOOR_SCRATCH, DOOR_FIELD(DOOR, workspace), .needed = bytes_,                       \
    .needs = BITS(__VA_ARGS__)
#define CHECK(function) .kind = DOOR_CHECK, .check = function

/* Where a number, a workspace or (behind its strides) a tensor goes in the problem. */
#define TO(field) .lowered = true, .to = DOOR_IN_PROBLEM(DOOR, field)

/* Arguments by name, one to four. */
#define BIT(field) (1u << DOOR_AT(DOOR, field))
#define DOOR_BITS_1(a) BIT(a)
#define DOOR_BITS_2(a, b) (BIT(a) | BIT(b))
#define DOOR_BITS_3(a, b, c) (BIT(a) | BIT(b) | BIT(c))
#define DOOR_BITS_4(a, b, c, d) (BIT(a) | BIT(b) | BIT(c) | BIT(d))
#define DOOR_PICK(a, b, c, d, picked, ...) picked
#define BITS(...) DOOR_PICK(__VA_ARGS__, DOOR_BITS_4, DOOR_BITS_3, DOOR_BITS_2, DOOR_BITS_1, 0)(__VA_ARGS__)

/* ---- tensors: role, dtype, shape, layout, what it may be ------------------------------------------------------- */

#define IN .role = DOOR_IN
#define OUT .role = DOOR_OUT
#define SCRATCH .role = DOOR_SCRATCH

#define FLOAT_T .dtype = DOOR_FLOAT_T
#define T .dtype = DOOR_T
#define T_OR_F32 .dtype = DOOR_T_OR_F32
#define ANY_FLOAT .dtype = DOOR_ANY_FLOAT
#define INDEX .dtype = DOOR_INDEX
#define DTYPE(name) .dtype = LIGER_##name
#define DTYPE_OF(field) .dtype = DOOR_AS + DOOR_AT(DOOR, field)

#define SOME(number) ((number) | DOOR_SOME)
#define TIMES(factor, number) DOOR_TIMES(factor, number)
#define EXACTLY(value) DOOR_TIMES(value, DOOR_ONE)

#define ANY_SHAPE .shape = {.kind = DOOR_ANY_SHAPE}
#define FOLDED(rows, cols) .shape = {.kind = DOOR_FOLDED, .size = {rows, cols}}
/* Not 0-d: a last dimension to normalise over. */
#define MATRIX(rows, cols) .shape = {.kind = DOOR_FOLDED, .count = 1, .size = {rows, cols}}
#define DIMS(count_, ...) .shape = {.kind = DOOR_DIMS, .count = count_, .size = {__VA_ARGS__}}
#define DIMS_OF(meaning, count_, ...)                                                                                  \
    .shape = {.kind = DOOR_DIMS, .count = count_, .size = {__VA_ARGS__}, .means = meaning}
#define VECTOR(number) DIMS(1, number)
#define LIKE(field) .shape = {.kind = DOOR_LIKE, .like = DOOR_AT(DOOR, field)}
#define LIKE_BUT(field, dimension) .shape = {.kind = DOOR_LIKE, .like = DOOR_AT(DOOR, field), .free = 1u << (dimension)}
#define ELEMENT .shape = {.kind = DOOR_ELEMENT}
#define ELEMENT_OR(number) .shape = {.kind = DOOR_ELEMENT_OR, .size = {number}}
#define SHAPE(function) .shape = {.kind = DOOR_OWN_SHAPE}, .fits = function

/* Strides alone, or with the field of the problem that gets the address, the rows or what a function makes of them. */
#define LAST .layout = DOOR_LAST
#define PITCHED .layout = DOOR_PITCHED
#define CONTIGUOUS .layout = DOOR_CONTIGUOUS
#define TO_ROWS(field) .layout = DOOR_ROWS, TO(field)
#define TO_POINTER(field) .layout = DOOR_CONTIGUOUS, TO(field)
#define TO_PITCHED(field) .layout = DOOR_PITCHED, TO(field)
#define TO_LAST(field) .layout = DOOR_LAST, TO(field)
#define LOWER(function, field) .layout = DOOR_OWN_LAYOUT, .lower = function, TO(field)

/* Besides: its dtype, and the stride of its first dimension. */
#define DTYPE_TO(field) .dtype_lowered = true, .dtype_to = DOOR_IN_PROBLEM(DOOR, field)
#define PITCH_TO(field) .pitch_lowered = true, .pitch_to = DOOR_IN_PROBLEM(DOOR, field)

#define OPTIONAL .optional = true
/* Present together or not at all; of a workspace: needed only then. */
#define ONLY_WITH(...) .optional = true, .with = BITS(__VA_ARGS__)
#define MAY_BE(...) .may_be = BITS(__VA_ARGS__)

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

#define BETWEEN(least, most) .bounds = DOOR_BETWEEN, .low = least, .high = most
#define AT_LEAST(least) .bounds = DOOR_AT_LEAST, .low = least
#define FINITE .bounds = DOOR_FINITE
#define POSITIVE .bounds = DOOR_POSITIVE
#define CAP .bounds = DOOR_CAP
#define NONE_OR_FLOAT .bounds = DOOR_NONE_OR_FLOAT
#define BINDS(number) .binds = number

#endif
