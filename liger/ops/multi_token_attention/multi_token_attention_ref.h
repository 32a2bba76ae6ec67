/* multi_token_attention_ref.h - what multi-token attention is, in double; P and dP are rounded where the contract rounds. Tests
 * only. */
#ifndef LIGER_OPS_MULTI_TOKEN_ATTENTION_REF_H
#define LIGER_OPS_MULTI_TOKEN_ATTENTION_REF_H

#include <stdbool.h>
#include <stdint.h>

#include "liger/core/tensor.h"

struct mta_ref {
    int64_t batch, in, out, size, groups;
    int64_t kernel[2], stride[2], padding[2], dilation[2];
    bool sparse;
    liger_dtype t; /* what is rounded to */
    const double *scores, *weight;
};

/* [rows, 2], as the contract has it. */
void mta_ref_statistics(const struct mta_ref *p, double *statistics);
/* P of one place, unrounded. 0 beyond the plane and the diagonal. */
double mta_ref_probability(const struct mta_ref *p, const double *statistics, int64_t plane, int64_t row, int64_t col);
void mta_ref_forward(const struct mta_ref *p, const double *statistics, const double *bias, double *y);
/* Each gradient may be NULL. */
void mta_ref_backward(const struct mta_ref *p, const double *statistics, const double *dy, double *dscores,
                      double *dweight, double *dbias);
/* dP, [batch, in, size, size], up to the diagonal. */
void mta_ref_transposed(const struct mta_ref *p, const double *dy, double *dprobability);

/* The same loops with f32 variables: one accumulator, a rounding after each operation. */
void mta_naive_statistics(const struct mta_ref *p, double *statistics);
void mta_naive_forward(const struct mta_ref *p, const double *statistics, const double *bias, double *y);
void mta_naive_backward(const struct mta_ref *p, const double *statistics, const double *dy, double *dscores,
                        double *dweight, double *dbias);

#endif
