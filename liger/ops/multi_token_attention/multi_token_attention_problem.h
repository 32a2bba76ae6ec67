/* multi_token_attention_problem.h - what a backend sees: flat, checked, no views.
 *
 * A plane is one channel of one sample, L x L. Forward correlates planes of P with taps, backward planes of g with the same
 * taps turned over: both are zero beyond the diagonal, and of both nobody wants what lies beyond it. */
#ifndef LIGER_OPS_MULTI_TOKEN_ATTENTION_PROBLEM_H
#define LIGER_OPS_MULTI_TOKEN_ATTENTION_PROBLEM_H

#include <stdbool.h>
#include <stddef.h>

#include "liger/core/rows.h"

/* Pairs are of rows and columns. */
struct mta_shape {
    int64_t batch, in, out, size, groups; /* batch and size 1 or more, but in backward without dscores */
    int64_t kernel[2], stride[2], padding[2], dilation[2];
    int64_t chunks; /* in which dweight and dbias are summed up: mta_chunks() */
    bool sparse;
};

struct multi_token_attention_forward_problem {
    liger_dtype dtype, weight_dtype;
    struct mta_shape shape;
    const void *scores, *weight, *bias; /* bias or NULL */
    void *y;
    float *statistics; /* [batch · in · size, 2] */
};

struct multi_token_attention_backward_problem {
    liger_dtype dtype, weight_dtype;
    struct mta_shape shape;
    const void *dy, *scores, *weight;
    const float *statistics;
    void *dscores, *dweight, *dbias; /* each or NULL, not all */
    float *workspace;                /* [chunks, mta_taps() + out] */
};

enum {
    MTA_ROWS = 32,      /* of a strip */
    MTA_CPU_TASKS = 64, /* as many are enough for the threads */
    MTA_BLOCKS = 4      /* of a GPU's multiprocessor: to even out */
};

/* From this magnitude on all of a support are the largest score: tau is known by their share, which is kept with a minus. */
#define MTA_SHARES 0x1p23f

LIGER_HOST_DEVICE static inline int64_t mta_in_of_group(const struct mta_shape *s) { return s->in / s->groups; }
LIGER_HOST_DEVICE static inline int64_t mta_taps(const struct mta_shape *s) {
    return s->out * mta_in_of_group(s) * s->kernel[0] * s->kernel[1];
}
LIGER_HOST_DEVICE static inline int64_t mta_tile_rows(const struct mta_shape *s) {
    return (s->size + MTA_ROWS - 1) / MTA_ROWS;
}

/* Partial sums of each tap: chunk k has every chunks-th strip of MTA_ROWS rows of a sample, or tile, from the k-th on, so that all
 * have long rows and short ones. By shape and device alone: the sums' order never changes. multiprocessors: 0 on the CPU. */
static inline int64_t mta_chunks(int32_t multiprocessors, const struct mta_shape *s) {
    const int64_t tasks = multiprocessors ? (int64_t)multiprocessors * MTA_BLOCKS : (int64_t)MTA_CPU_TASKS;
    const int64_t pairs = s->out * mta_in_of_group(s), strips = s->batch * mta_tile_rows(s);
    const int64_t chunks = pairs ? tasks / pairs : 1; /* no block waits for another to end */
    return chunks < 1 || strips < 1 ? 1 : chunks < strips ? chunks : strips;
}

#endif
