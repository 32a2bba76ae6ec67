/* logprob_cases.h - what the cases of log-probabilities share, those of logits that are there and those on a head. */
#ifndef LIGER_OPS_LOGPROB_CASES_H
#define LIGER_OPS_LOGPROB_CASES_H

#include "liger/ops/logprob/logprob_ref.h"
#include "tests/harness/op_cases.h"

enum { SCALE, SOFTCAP, TEMPERATURE };
#define PLAIN                                                                                                          \
    { 1, 0, 1 }

/* A room's own flags begin at LOGPROB_FLAGS. */
enum {
    /* Results, or in backward their upstreams. */
    HAS_LOG_PROB = 1,
    HAS_ENTROPY = 2,
    HAS_LSE = 4,
    HAS_SQUARES = 8,
    HAS_MEAN = 16,
    HAS_TOP1 = 32,
    HAS_SELECTED = 64,
    HAS_NORMALIZER = 128,
    ALL = 255,
    /* Every third row is ignored, unless all or none are. */
    IGNORED = 1 << 8,
    COUNTED = 1 << 9,
    MASKED = 1 << 10,   /* every third class but the targets has a logit of -inf */
    SHIFTED = 1 << 11,  /* all logits are about 1024 */
    POISON = 1 << 12,   /* ignored rows hold a NaN, their upstreams too */
    INFINITE = 1 << 13, /* the first class has a logit of +inf */
    LOGPROB_FLAGS = 1 << 14
};
static inline bool has(const struct op_case *c, uint32_t flag) { return (c->flags & flag) != 0; }

/* The tensors of a row's results, and of its statistics and upstreams, which follow on the operands. */
#define LOGPROB_RESULTS(first) LOG_PROB = first, ENTROPY, LSE, SQUARES, MEAN, IS_TOP1, NORMALIZER
#define LOGPROB_UPSTREAMS(first)                                                                                       \
    OF_LOG_PROB = first, OF_NORMALIZER, OF_ENTROPY, OF_SQUARES, D_LOG_PROB, D_ENTROPY, D_LSE, D_SQUARES, D_MEAN

struct tensor_spec logprob_target(const struct op_case *c, int64_t rows, int64_t vocab);
/* `each` numbers for every row. */
struct tensor_spec logprob_by_rows(const char *name, enum tensor_role role, int64_t rows, int64_t each, bool present);
/* From the first of the tensors above on; what results may be off by is not in it. */
void logprob_describe_results(const struct op_case *c, int64_t rows, struct tensor_spec *first);
void logprob_describe_upstreams(const struct op_case *c, int64_t rows, struct tensor_spec *first);
/* What a z may be off by, in u of |z|, which is 8 at most, if its logit is exact. */
double logprob_error_of_z(const struct op_case *c);
/* What an element of the gradient of the logits may be off by, in u of the magnitudes that it is made of, if its z is off by so
 * much. */
double logprob_error_of_gradient(const struct op_case *c, double error_of_z);

/* A reference of a case, which rounds nothing; where it finds and puts the tensors above. */
struct logprob_ref logprob_ref_of(const struct op_case *c, int64_t rows, int64_t vocab);
void logprob_ref_results(struct logprob_ref *ref, double *const *first);
void logprob_ref_upstreams(struct logprob_ref *ref, double *const *first);
/* Forward makes what backward is given of it. */
void logprob_ref_statistics(struct logprob_ref *ref, double *const *first_upstream);
/* Σ upstream · result. Ignored rows have results of 0. */
double logprob_ref_loss(struct logprob_ref ref);

/* Options of an args struct. */
#define LOGPROB_OPTIONS(to, c)                                                                                         \
    ((to)->ignore_index = -100, (to)->scale = (float)(c)->scalar[SCALE], (to)->softcap = (float)(c)->scalar[SOFTCAP],  \
     (to)->temperature = (float)(c)->scalar[TEMPERATURE])

#endif
