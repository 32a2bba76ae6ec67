/* gated_cases.h - what the cases of gated activations share: gate and up of one shape, y = act(gate) · up. */
#ifndef TESTS_HARNESS_GATED_CASES_H
#define TESTS_HARNESS_GATED_CASES_H

#include "tests/harness/op_cases.h"

/* Tensors of the forward function, and of the backward one. */
enum { GATED_GATE, GATED_UP, GATED_Y };
enum { GATED_DY = GATED_Y, GATED_DGATE, GATED_DUP };
/* Sizes of a case: the shape is the last NDIM of OUTER, ROWS, COLS. A room's own follow. */
enum { GATED_NDIM, GATED_OUTER, GATED_ROWS, GATED_COLS, GATED_SIZES };
enum { GATED_EXTREME = 1 << 16 }; /* a flag: the gate goes through the saturated and the non-finite */

int64_t gated_count(const struct op_case *c);
struct tensor_spec gated_tensor(const struct op_case *c, const char *name, enum tensor_role role);
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
