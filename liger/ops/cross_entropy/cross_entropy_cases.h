/* cross_entropy_cases.h - what the cases of the plain and of the linear loss have in common: tensors, options, one property.
 *
 * Both write an option into the same scalar and the reduction into the lowest bits of the flags. */
#ifndef LIGER_OPS_CROSS_ENTROPY_CASES_H
#define LIGER_OPS_CROSS_ENTROPY_CASES_H

#include "tests/harness/op_cases.h"

enum { SMOOTHING, Z_SCALE, SOFTCAP, OPTIONS };
enum { MEAN = 0, SUM = 1, NONE = 2, REDUCTION = 3 };

/* The liger_reduction of a case. */
int32_t cross_entropy_reduction(const struct op_case *c);

struct tensor_spec cross_entropy_target(int64_t rows, int64_t vocab, bool all_ignored);
struct tensor_spec cross_entropy_weight(const char *name, int64_t vocab, bool present);
struct tensor_spec cross_entropy_upstream(int64_t rows, bool by_row, bool present);
/* loss, z_loss, accuracy, predicted; `others`: all but the loss are present. */
void cross_entropy_describe_results(const struct op_case *c, struct tensor_spec *spec, int64_t rows, bool others);

/* A last target out of range. The CPU refuses and names the value; on CUDA, where nobody can be told, the loss and the last
 * row of `gradient` become NaN, the other rows stay. */
const char *cross_entropy_target_out_of_range(struct op_run *run, int target, int gradient, int loss);

/* The options, which all four structs have. */
#define CROSS_ENTROPY_FILL(to, c)                                                                                      \
    ((to)->ignore_index = -100, (to)->label_smoothing = (float)(c)->scalar[SMOOTHING],                                 \
     (to)->lse_square_scale = (float)(c)->scalar[Z_SCALE], (to)->softcap = (float)(c)->scalar[SOFTCAP],                \
     (to)->reduction = cross_entropy_reduction(c))

/* The same, as members of a cross_entropy_ref. */
#define CROSS_ENTROPY_OPTIONS_OF(c)                                                                                    \
    .ignore_index = -100, .label_smoothing = (float)(c)->scalar[SMOOTHING],                                            \
    .lse_square_scale = (float)(c)->scalar[Z_SCALE], .softcap = (float)(c)->scalar[SOFTCAP],                           \
    .reduction = cross_entropy_reduction(c)

/* A result's shape depends on the reduction, which no rule says. */
#define CROSS_ENTROPY_RESULT_PROVOCATIONS(loss, z_loss, accuracy)                                                      \
    {"loss of rows", OP_VECTOR(loss, 5), LIGER_ERR_SHAPE, {": loss has 5 elements", "must have 1"}},                   \
        {"z_loss of rows", OP_VECTOR(z_loss, 5), LIGER_ERR_SHAPE, {": z_loss has 5 elements", "must have 1"}}, {       \
        "accuracy of rows", OP_VECTOR(accuracy, 5), LIGER_ERR_SHAPE, { ": accuracy has 5 elements", "must have 1" }    \
    }

#endif
