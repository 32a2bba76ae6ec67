/* gated_cases.h - what the cases of gated activations share: gate and up of one shape, y = act(gate) · up. */
#ifndef TESTS_HARNESS_GATED_CASES_H
#define TESTS_HARNESS_GATED_CASES_H

#include "tests/harness/rows_cases.h"

/* Tensors of the forward function, and of the backward one. */
enum { GATED_GATE, GATED_UP, GATED_Y };
enum { GATED_DY = GATED_Y, GATED_DGATE, GATED_DUP };
/* Flags. EXTREME: the gate goes through the saturated and the non-finite. */
enum { GATED_NO_DGATE = 1, GATED_NO_DUP = 2, GATED_EXTREME = 1 << 16 };

/* Shapes; what else a room's cases have follows in each. */
/* clang-format off */
#define GATED_CASES(...)                                                                                               \
    {.label = "3x7x37", .size = {3, 7, 37}, __VA_ARGS__},                                                           \
    {.label = "one element", .size = {0, -1, 1}, __VA_ARGS__},                                                       \
    {.label = "long row", .size = {0, -1, 40007}, __VA_ARGS__},                                                      \
    {.label = "aligned 6x2x512", .size = {6, 2, 512}, __VA_ARGS__},                                                 \
    {.label = "many narrow rows", .size = {0, 1031, 8}, __VA_ARGS__},                                               \
    {.label = "columns of one", .size = {4, 9, 1}, __VA_ARGS__},                                                    \
    {.label = "nothing asked for", .size = {0, 3, 40}, .flags = GATED_NO_DGATE | GATED_NO_DUP, .edge = true,        \
     __VA_ARGS__},                                                                                                     \
    {.label = "no rows", .size = {0, 0, 40}, .edge = true, __VA_ARGS__},                                            \
    {.label = "no columns", .size = {2, 3, 0}, .edge = true, __VA_ARGS__},                                          \
    {.label = "saturated", .size = {0, 5, 61}, .flags = GATED_EXTREME, .edge = true, __VA_ARGS__},                  \
    {.label = "1000x4104", .size = {0, 1000, 4104}, .large = true, __VA_ARGS__}
/* Bytes: every tensor once; none is absent. */
#define GATED_BENCH(...)                                                                                               \
    {.label = "16384x14336", .size = {0, 16384, 14336}, .dtypes = 1u << LIGER_BF16, .large = true, __VA_ARGS__},    \
    {.label = "2048x2816", .size = {0, 2048, 2816}, __VA_ARGS__},                                                   \
    {.label = "2048x11008", .size = {0, 2048, 11008}, __VA_ARGS__}
/* clang-format on */

/* Gate and up, and with them y, or dy and both gradients; a room says how exact its outputs are. */
void gated_describe_forward(const struct op_case *c, struct tensor_spec *spec);
void gated_describe_backward(const struct op_case *c, struct tensor_spec *spec);
void gated_prepare(const struct op_case *c, const struct op_types *types, double *const *t);

/* Properties. y of a fused projection [rows, 2·cols], written over its gate half, has the bits of y of two tensors; so
 * have gradients that are written over the projection. */
const char *gated_forward_of_halves(struct op_run *run);
const char *gated_backward_of_halves(struct op_run *run);
/* Bit by bit, y is round(round(act) · up), and then round(that · *down_multiplier) where that is not 1: the tolerance of
 * parity is too wide to see a rounding that is left out. NULL: there is no multiplier. */
const char *gated_rounds_like_operators(struct op_run *run, double *down_multiplier);
/* Where the activation's dtype is not T's: with up and what else multiplies it 1, y is a value of that dtype. */
const char *gated_activation_is_rounded(struct op_run *run, liger_dtype activation);

#endif
