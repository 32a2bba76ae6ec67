/* gated_door.h - what the tables of gated activations, y = f(gate) · up, have in common. Internal; only doors include it. */
#ifndef LIGER_CORE_GATED_DOOR_H
#define LIGER_CORE_GATED_DOOR_H

#include "liger/core/door_rules.h"

/* Rows, after DOOR and with sizes ROWS and COLS. The problem has gate, up and y, or dy, gate, up, dgate and dup. */
/* clang-format off */
#define GATED_INPUTS                                                                                                   \
    {ARG(gate), IN, FLOAT_T, FOLDED(ROWS, COLS), TO_ROWS(gate)},                                                       \
    {ARG(up),   IN, T,       LIKE(gate),         TO_ROWS(up)}
#define GATED_FORWARD                                                                                                  \
    GATED_INPUTS,                                                                                                      \
    {ARG(y), OUT, T, LIKE(gate), TO_ROWS(y), MAY_BE(gate, up)}
#define GATED_BACKWARD                                                                                                 \
    GATED_INPUTS,                                                                                                      \
    {ARG(dy),    IN,  T, LIKE(gate), TO_ROWS(dy)},                                                                     \
    {ARG(dgate), OUT, T, LIKE(gate), TO_ROWS(dgate), OPTIONAL, MAY_BE(dy, gate)},                                      \
    {ARG(dup),   OUT, T, LIKE(gate), TO_ROWS(dup),   OPTIONAL, MAY_BE(dy, up)}
/* clang-format on */

#endif
