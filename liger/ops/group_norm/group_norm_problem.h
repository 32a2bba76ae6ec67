/* group_norm_problem.h - what a backend sees of GroupNorm: flat, checked, no views.
 *
 * A plane is what lies behind one channel of one sample: `spatial` elements. A row is a group of one sample:
 * channels/groups planes, one after the other in memory. */
#ifndef LIGER_OPS_GROUP_NORM_PROBLEM_H
#define LIGER_OPS_GROUP_NORM_PROBLEM_H

#include <stddef.h>
#include <stdint.h>

#include "liger/core/rows.h"

/* All 1 or more, but batch in backward. */
struct group_norm_shape {
    int64_t batch, channels, spatial, groups;
};

/* Into how many pieces the work is cut, by shape and device alone, so that the sums' order never changes. */
struct group_norm_cut {
    int64_t chunks;  /* of a row, forward; 1: a block holds it */
    int64_t pieces;  /* of a plane, backward */
    int64_t batches; /* the samples of one partial sum over the batch are `batches` apart */
    int32_t lanes;   /* threads of a piece */
};

struct group_norm_forward_problem {
    liger_dtype dtype, weight_dtype;
    struct group_norm_shape shape;
    struct group_norm_cut cut;
    const void *x, *weight, *bias;
    void *y;
    float *statistics; /* [2, rows] or NULL */
    float epsilon;
    float *workspace; /* group_norm_forward_floats() */
};

struct group_norm_backward_problem {
    liger_dtype dtype, weight_dtype;
    struct group_norm_shape shape;
    struct group_norm_cut cut;
    const void *dy, *x, *weight;
    const float *statistics;
    void *dx, *dweight, *dbias; /* each or NULL, not all */
    float *workspace;           /* group_norm_backward_floats() */
};

LIGER_HOST_DEVICE static inline int64_t group_norm_rows(const struct group_norm_shape *s) {
    return s->batch * s->groups;
}
LIGER_HOST_DEVICE static inline int64_t group_norm_cols(const struct group_norm_shape *s) {
    return s->channels / s->groups * s->spatial;
}

enum {
    GROUP_NORM_THREADS = 256,        /* of a GPU's block */
    GROUP_NORM_PIECE = 16 << 10,     /* bytes that are worth a block: four packs a thread */
    GROUP_NORM_HELD = 2048,          /* packs, or elements, of a row that a block has in registers, at most */
    GROUP_NORM_PIECES = 512,         /* of a row or a plane, at most */
    GROUP_NORM_CPU_ROWS = 32,        /* as many rows are enough for the threads */
    GROUP_NORM_CPU_CHUNK = 16 << 10, /* elements of a part of a row, where there are fewer */
    GROUP_NORM_CPU_CHUNKS = 64
};

static inline int64_t group_norm_parts(int64_t size, int64_t part, int64_t most) {
    const int64_t parts = (size + part - 1) / part;
    return parts < 1 ? 1 : parts < most ? parts : most;
}

/* multiprocessors: 0 on the CPU, which cuts planes never, and rows where they are few. */
static inline struct group_norm_cut group_norm_cut_of(int32_t multiprocessors, const struct group_norm_shape *s,
                                                      int64_t element) {
    struct group_norm_cut cut = {1, 1, 1, 1};
    const int64_t cols = group_norm_cols(s);
    if (multiprocessors == 0) {
        if (group_norm_rows(s) < GROUP_NORM_CPU_ROWS)
            cut.chunks = group_norm_parts(cols, GROUP_NORM_CPU_CHUNK, GROUP_NORM_CPU_CHUNKS);
        return cut;
    }
    if (cols * element > GROUP_NORM_HELD * 16)
        cut.chunks = group_norm_parts(cols * element, GROUP_NORM_PIECE, GROUP_NORM_PIECES);
    cut.pieces = group_norm_parts(s->spatial * element, GROUP_NORM_PIECE, GROUP_NORM_PIECES);
    const int64_t packs = s->spatial * element / 16;
    while (cut.lanes < 32 && cut.lanes < packs) cut.lanes *= 2;
    if (packs > 16 * 32) cut.lanes = GROUP_NORM_THREADS; /* else no warp waits for another */
    /* Twice the threads that the GPU holds, to even out. */
    const int64_t threads = (int64_t)multiprocessors * 4096, of_a_sample = s->channels * cut.pieces * cut.lanes;
    cut.batches = group_norm_parts(threads, of_a_sample, s->batch < 1 ? 1 : s->batch);
    return cut;
}

/* On a GPU four floats of each chunk, then mean, what it lacks times -rstd, and rstd of each row, also of rows that need packs
 * to be held, and may turn out not to be aligned for them; on the CPU the four of each chunk. */
static inline int64_t group_norm_forward_floats(const struct group_norm_shape *s, const struct group_norm_cut *cut) {
    return cut->chunks > 1 || group_norm_cols(s) > GROUP_NORM_HELD ? group_norm_rows(s) * (4 * cut->chunks + 3) : 0;
}
/* [2, batch · pieces, channels]: sums of dy and of dy · n over each piece; [2, batches · pieces, channels]: the same, over
 * the samples of a partial sum; [rows, 2]: mean(g) and mean(g · n). */
static inline int64_t group_norm_backward_floats(const struct group_norm_shape *s, const struct group_norm_cut *cut) {
    return 2 * (s->batch + cut->batches) * cut->pieces * s->channels + 2 * group_norm_rows(s);
}

#endif
