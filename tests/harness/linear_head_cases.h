/* linear_head_cases.h - what the cases of functions on a linear head share: exact logits, and the budgets of its gradients.
 *
 * x, weight and bias that are small multiples of 1/16 have logits that are exact in f32 whatever the order of their sum:
 * library and reference round the same number to T, ties included, and a result can be held to what comes after. */
#ifndef TESTS_HARNESS_LINEAR_HEAD_CASES_H
#define TESTS_HARNESS_LINEAR_HEAD_CASES_H

#include "tests/harness/op_cases.h"

/* Rounds to multiples of 1/16. */
void head_coarsen(double *values, int64_t count);

/* `count` zeros; never NULL. */
double *head_doubles(int64_t count);

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

#endif
