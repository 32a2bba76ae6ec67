/* linear_head_cases.h - what the cases of functions on a linear head share: exact logits, and the budgets of its gradients.
 *
 * x, weight and bias that are small multiples of 1/16 have logits that are exact in f32 whatever the order of their sum:
 * library and reference round the same number to T, ties included, and a result can be held to what comes after. */
#ifndef TESTS_HARNESS_LINEAR_HEAD_CASES_H
#define TESTS_HARNESS_LINEAR_HEAD_CASES_H

#include "tests/harness/head_ref.h"
#include "tests/harness/op_cases.h"

/* Sizes of a case of a loss on a head; a room's own follow. Such a loss has x and weight as its first tensors, and others by
 * their place in a case. */
enum { HEAD_ROWS, HEAD_HIDDEN, HEAD_VOCAB, HEAD_CHUNK, HEAD_SIZES };
enum { HEAD_X, HEAD_WEIGHT };
struct head_tensors {
    int bias, dx, dweight, dbias; /* HEAD_NONE: there is none */
};
enum { HEAD_NONE = -1 };

/* Rounds to multiples of 1/16. */
void head_coarsen(double *values, int64_t count);

/* `count` zeros; never NULL. */
double *head_doubles(int64_t count);

/* A case's head, with memory for logits and dlogits, without gradients; and with them. */
struct head_ref head_of(const struct op_case *c, const struct op_types *types, double *const *t,
                        const struct head_tensors *at);
void head_add_gradients(struct head_ref *head, double *const *t, const struct head_tensors *at);
void head_release(const struct head_ref *head);

/* x, weight and bias of a case. */
void head_describe_operands(int64_t rows, int64_t hidden, int64_t vocab, struct tensor_spec *x,
                            struct tensor_spec *weight, struct tensor_spec *bias);

/* The labels of a distillation loss, whose sign alone matters: every third row is ignored, or all are. */
struct tensor_spec head_labels(int64_t rows, bool all_ignored, bool absent);

/* A chunk of logits for the library to use: what is left in it is nobody's business; its fences and gaps are. */
struct tensor_spec head_chunk(const char *name, int64_t rows, int64_t cols);

/* A divergence: logarithms and exponentials of 2 u, and the sums. Logits that are not exact have in f32 an error of u times the
 * number of their terms, `inexact`, times their magnitudes, about 4 u each in all, and the loss takes twice the largest. */
struct tensor_spec head_divergence(int64_t inexact, bool absent);

/* dx, dweight and dbias of a case. */
void head_describe_gradients(int64_t rows, int64_t hidden, int64_t vocab, struct tensor_spec *dx,
                             struct tensor_spec *dweight, struct tensor_spec *dbias);

/* The magnitudes of these three, whose specs have absolute and inner 1. */
struct head_budget {
    int64_t rows, hidden, vocab;
    liger_dtype t;
    const double *x, *weight;
    const double *dlogits; /* [rows, vocab], as rounded to t */
    const double
        *error;    /* [rows, vocab]: what an element of it may be off by in f32, before its rounding, in units of u */
    double logits; /* what dlogits is off by because logits are, relative to itself, in units of u */
    bool rounds;   /* dweight is rounded between chunks */
};
void head_magnitudes(const struct head_budget *b, double *dx, double *dweight, double *dbias);
/* The same of a loss's head, in the magnitudes of its tensors. */
void head_raise(const struct head_ref *head, const double *error, double logits, const struct head_tensors *at,
                double *magnitude);

/* A property: chunks of any size give what the whole gives, within the same budget. */
const char *head_any_chunk(struct op_run *run);
/* Of a CPU: so does no buffer at all, where dweight holds the logits. */
const char *head_in_dweight(struct op_run *run, int dweight);

/* Three products. */
double head_flops(const struct op_case *c);

/* Calls that such a loss refuses, of a case of 9 hidden and more rows (fewer could do without a buffer on a CPU); `name` is that
 * of the buffer of a chunk. */
/* clang-format off */
#define HEAD_PROVOCATIONS(buffer, name)                                                                                \
    {"no vocabulary", OP_SHAPE(HEAD_WEIGHT, 0, 0), LIGER_ERR_SHAPE, {"weight is 0 x 9", "shard"}},                     \
    {name " absent", OP_ABSENT(buffer), LIGER_ERR_ARGUMENT, {name " is required"}},                                    \
    {name " without rows", OP_SHAPE(buffer, 0, 0), LIGER_ERR_SHAPE, {name, "1 or more", "0 rows"}}
#define HEAD_ROWS_OVERLAP                                                                                              \
    {"x rows overlap", OP_STRIDE(HEAD_X, 0, 8), LIGER_ERR_LAYOUT, {"x: rows overlap", "8", "9"}}
/* clang-format on */

/* Why no input takes part in a range of values. */
#define HEAD_INEXACT(others)                                                                                           \
    "linear loss: only sums of multiples of 1/16 are exact logits; gemm and " others " have this range"

#endif
