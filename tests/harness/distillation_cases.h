/* distillation_cases.h - what the cases of distillation losses on a linear head share: sizes, flags, evaluation and budgets.
 *
 * Logits are exact (linear_head_cases.h); only a GENERAL case, in f32, has logits with an error of its own. */
#ifndef TESTS_HARNESS_DISTILLATION_CASES_H
#define TESTS_HARNESS_DISTILLATION_CASES_H

#include "tests/harness/distillation_ref.h"
#include "tests/harness/linear_head_cases.h"
#include "tests/harness/op_run.h"

enum { ROWS = HEAD_ROWS, HIDDEN = HEAD_HIDDEN, VOCAB = HEAD_VOCAB, CHUNK = HEAD_CHUNK, OWN_SIZES = HEAD_SIZES };

/* A room's own flags begin at OWN_FLAGS. */
enum {
    MEAN = 1,
    SUM = 2,
    REDUCTION = 3, /* these two are a liger_linear_kl_reduction */
    LABELED = 4,
    IGNORED = 8, /* by every label */
    RAW = 16,
    NO_LOSS = 32,
    NO_DX = 64,
    NO_DWEIGHT = 128,
    NO_DBIAS = 256,
    GENERAL = 512,
    OWN_FLAGS = 1024,
    LOSS_ONLY = NO_DX | NO_DWEIGHT | NO_DBIAS
};

static inline bool has(const struct op_case *c, uint32_t flag) { return (c->flags & flag) != 0; }

/* By their place in a case. */
struct distillation_places {
    struct head_tensors head;
    int labels, loss; /* tensors */
    int temperature;  /* scalar */
};

/* A case's loss, without results; and with them. What is rounded in f32 before it gets there is rounded. */
struct distillation_ref distillation_of(const struct op_case *c, const struct op_types *types, double *const *t,
                                        const struct distillation_places *at);
void distillation_add_results(struct distillation_ref *of, double *const *t, const struct distillation_places *at);
/* Only the loss, and that whose gradient is not divided where the case's is not. */
void distillation_ask_loss(struct distillation_ref *of, double *loss);

/* What op_cases asks of a room, from
 *
 *   reference_of(c, types, t)   its reference's struct, whose member `of` is distillation_of(...)
 *   release(&reference)
 *   at                          the places */
#define DISTILLATION_EVALUATED(room)                                                                                   \
    static void evaluate(const struct op_case *c, const struct op_types *types, double *const *t,                      \
                         void (*loops)(const struct room##_ref *)) {                                                   \
        struct room##_ref ref = reference_of(c, types, t);                                                             \
        distillation_add_results(&ref.of, t, &at);                                                                     \
        loops(&ref);                                                                                                   \
        release(&ref);                                                                                                 \
    }                                                                                                                  \
    static void reference(const struct op_case *c, const struct op_types *types, double *const *t) {                   \
        evaluate(c, types, t, room##_reference);                                                                       \
    }                                                                                                                  \
    static void naive(const struct op_case *c, const struct op_types *types, double *const *t) {                       \
        evaluate(c, types, t, room##_naive);                                                                           \
    }                                                                                                                  \
    static double loss_of(const struct op_case *c, const struct op_types *types, double *const *t) {                   \
        struct room##_ref ref = reference_of(c, types, t);                                                             \
        double loss = 0;                                                                                               \
        distillation_ask_loss(&ref.of, &loss);                                                                         \
        room##_reference(&ref);                                                                                        \
        release(&ref);                                                                                                 \
        return loss;                                                                                                   \
    }

/* Of a row: what the loss's terms come to, and what an element of the gradient is the difference of, at most. */
struct row_sizes {
    double loss, gradient;
};
typedef struct row_sizes distillation_sizes(const void *room, int64_t r);

/* Magnitudes of the results of a loss whose rows have been evaluated. The gradient of the logits errs by `units` u of its sizes, and
 * by `logits` u of itself because logits do. */
struct distillation_errors {
    double units, logits;
};
void distillation_magnitudes(const struct distillation_ref *of, const void *room, distillation_sizes *sizes_of_row,
                             struct distillation_errors errors, const struct distillation_places *at,
                             double *magnitude);

/* A property: labels are no indices, what they say is whether they are ignore_index. */
const char *distillation_any_label(struct op_run *run, const struct distillation_places *at);

/* Of a case whose first logits are divided by scalar `temperature`. */
/* clang-format off */
#define TEMPERATURE_PROVOCATIONS(temperature)                                                                          \
    {"temperature of 0", OP_SCALAR(temperature, 0), LIGER_ERR_ARGUMENT, {"temperature is 0", "divided"}},              \
    {"temperature without an inverse", OP_SCALAR(temperature, 1e-39), LIGER_ERR_ARGUMENT, {"temperature is 1e-39"}}
/* clang-format on */

#endif
