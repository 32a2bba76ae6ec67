/* mhc_problem.h - what a backend sees: flat, checked, in one piece. k = hc · c, m = hc · (hc + 2). */
#ifndef LIGER_OPS_MHC_PROBLEM_H
#define LIGER_OPS_MHC_PROBLEM_H

#include <stdbool.h>

#include "liger/core/rows.h"

/* Beyond them sizes and grids would not fit their types. */
enum { MHC_MOST_STREAMS = 1024, MHC_MOST_STEPS = 1 << 16 };

/* What the coefficients of a token are made with. */
struct mhc_formula {
    const float *b, *alpha_pre, *alpha_post, *alpha_res; /* [m]; one each */
    int64_t steps;                                       /* tmax >= 1 */
    float pre_eps, sinkhorn_eps, post_mult;
};

struct mhc_coeffs_forward_problem {
    liger_dtype dtype, phi_dtype;
    int64_t tokens, hc, c; /* all 1 or more */
    const void *x, *phi;
    struct mhc_formula formula;
    float rms_eps;
    float *h_pre, *h_post, *h_res, *mix, *rstd;
    void *x_in;       /* or NULL */
    float *workspace; /* mhc_forward_floats() */
};

struct mhc_coeffs_backward_problem {
    liger_dtype dtype, phi_dtype;
    int64_t tokens, hc, c;                  /* tokens may be 0 */
    const float *dh_pre, *dh_post, *dh_res; /* or NULL, each */
    const void *dx_in, *dx_so_far;          /* or NULL */
    const void *x, *phi;
    struct mhc_formula formula;
    const float *mix, *rstd;
    void *dx, *dphi;                                   /* or NULL */
    float *db, *dalpha_pre, *dalpha_post, *dalpha_res; /* or NULL */
    float *workspace;                                  /* mhc_backward_floats() */
};

struct mhc_pre_forward_problem {
    liger_dtype dtype;
    int64_t tokens, hc, c;
    const void *x;
    const float *h_pre;
    void *y;
};

struct mhc_pre_backward_problem {
    liger_dtype dtype;
    int64_t tokens, hc, c;
    const void *dy, *x;
    const float *h_pre;
    void *dx;      /* or NULL */
    float *dh_pre; /* or NULL */
};

struct mhc_post_res_forward_problem {
    liger_dtype dtype, f_dtype;
    int64_t tokens, hc, c;
    const void *x, *f;
    const float *h_post, *h_res;
    void *y;
};

struct mhc_post_res_backward_problem {
    liger_dtype dtype, f_dtype;
    int64_t tokens, hc, c;
    const void *dy, *x, *f;
    const float *h_post, *h_res;
    void *dx, *df;           /* or NULL */
    float *dh_post, *dh_res; /* or NULL */
};

/* ---- workspaces ------------------------------------------------------------------------------------------------- */

LIGER_HOST_DEVICE static inline int64_t mhc_m(int64_t hc) { return hc * (hc + 2); }
LIGER_HOST_DEVICE static inline int64_t mhc_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
/* The CPU cuts k in slabs, whose part of phi stays in a core's cache, and tokens in blocks. */
enum { MHC_SLABS = 16, MHC_LEAST_SLAB = 64, MHC_MOST_SLAB = 1024, MHC_BLOCK = 64 };
static inline int64_t mhc_slab(int64_t k) {
    const int64_t wanted = mhc_ceil(mhc_ceil(k, MHC_SLABS), MHC_LEAST_SLAB) * MHC_LEAST_SLAB;
    return wanted < MHC_MOST_SLAB ? wanted : (int64_t)MHC_MOST_SLAB;
}
/* phi or its gradient as [slab, m, column of the slab] in f32. */
static inline int64_t mhc_slab_floats(int64_t k, int64_t m) { return mhc_ceil(k, mhc_slab(k)) * m * mhc_slab(k); }

/* A token's Sinkhorn iteration to be run backwards: the matrix after every step, what each step has divided by, a gradient. */
static inline int64_t mhc_history(int64_t hc, int64_t steps) { return 2 * steps * (hc * hc + hc) + hc * hc; }

static inline int64_t mhc_cpu_backward_floats(int64_t tokens, int64_t hc, int64_t c, int64_t steps) {
    const int64_t m = mhc_m(hc), blocks = mhc_ceil(tokens, MHC_BLOCK);
    return tokens * (m + 1 + hc) + blocks * (2 * m + mhc_history(hc, steps)) + 2 * mhc_slab_floats(hc * c, m);
}

/* On a GPU columns of phi go in groups, those of the last filled up with zeros, and k in steps; a block of the product has so
 * many tokens. Few tokens are cut along k in pieces, whose sums are added in order. */
enum { MHC_GROUP = 24, MHC_STEP = 64, MHC_TILE = 64, MHC_LEAST_PIECE = 1024 };
LIGER_HOST_DEVICE static inline int64_t mhc_groups(int64_t hc) { return mhc_ceil(mhc_m(hc), MHC_GROUP); }
static inline int64_t mhc_pieces(int32_t multiprocessors, int64_t tokens, int64_t hc, int64_t k) {
    const int64_t blocks = mhc_ceil(tokens, MHC_TILE) * mhc_groups(hc), wanted = 2 * (int64_t)multiprocessors / blocks;
    const int64_t most = mhc_ceil(k, MHC_LEAST_PIECE), pieces = wanted < most ? wanted : most;
    return pieces < 1 ? 1 : pieces;
}

/* An element of phi on tensor cores: itself, or as f32 the sum of three bf16, which is exact, where x is bf16. */
static inline int mhc_terms(liger_dtype phi) { return phi == LIGER_F32 ? 3 : 1; }

/* Where parts of a workspace begin, in floats. */
struct mhc_forward_parts {
    int64_t pieces;
    int64_t phi;    /* in the order of the tensor cores, two bytes an element: [groups, steps, terms, step, group] */
    int64_t sums;   /* [pieces, tokens, m + 1]: x · phi and the squares of x */
    int64_t floats; /* of all */
};
static inline struct mhc_forward_parts mhc_cut_forward(int32_t multiprocessors, int64_t tokens, int64_t hc, int64_t c,
                                                       int terms) {
    struct mhc_forward_parts parts;
    const int64_t padded = mhc_ceil(hc * c, MHC_STEP) * MHC_STEP;
    parts.pieces = mhc_pieces(multiprocessors, tokens > 0 ? tokens : 1, hc, hc * c);
    parts.phi = 0;
    parts.sums = terms * mhc_groups(hc) * MHC_GROUP * padded / 2;
    parts.floats = parts.sums + parts.pieces * tokens * (mhc_m(hc) + 1);
    return parts;
}

/* Backward on a GPU. Up to 16 streams a token has as many threads of a warp, filled up to a power of two, each with a row of the
 * matrix in its registers; beyond, it has a block. A unit is a block of such threads, which goes through tokens. */
enum { MHC_UNIT_THREADS = 128, MHC_UNITS_PER_MULTIPROCESSOR = 4, MHC_MOST_LANES = 16 };
LIGER_HOST_DEVICE static inline int mhc_lanes(int64_t hc) {
    int lanes = 1;
    while (lanes < hc && lanes <= MHC_MOST_LANES) lanes *= 2;
    return lanes; /* more than MHC_MOST_LANES: a block */
}
/* Columns of k of a block that adds up tokens, and who adds up: blocks that multiprocessors hold at a time. */
enum { MHC_COLUMNS = 256, MHC_ADDERS_PER_MULTIPROCESSOR = 3, MHC_LEAST_TOKENS = 64, MHC_SIDE = 8 };

struct mhc_backward_parts {
    int64_t units, adders, v_stride, side_stride, history_stride;
    int64_t v;    /* [tokens, v_stride]: rstd · dmix, zeros behind m */
    int64_t side; /* [tokens, side_stride]: what dx takes of dx_in, for each stream; what it takes of x */
    int64_t dots; /* [tokens, hc]: ⟨dx_in, x⟩ */
    int64_t
        history;  /* [units, history_stride]: what steps of the iteration have divided by; before it a block's matrix */
    int64_t sums; /* [units, 2, m]: Σ dlogits, Σ dlogits · mix */
    int64_t totals; /* [2, m] */
    int64_t dphi;   /* [adders, k, m] */
    int64_t floats; /* of all */
};
static inline struct mhc_backward_parts mhc_cut_backward(int32_t multiprocessors, int64_t tokens, int64_t hc, int64_t c,
                                                         int64_t steps) {
    struct mhc_backward_parts parts;
    const int64_t m = mhc_m(hc), k = hc * c, lanes = mhc_lanes(hc);
    const bool blocks = lanes > MHC_MOST_LANES;
    const int64_t units = blocks ? tokens : mhc_ceil(tokens, MHC_UNIT_THREADS / lanes);
    const int64_t most = (int64_t)multiprocessors * MHC_UNITS_PER_MULTIPROCESSOR;
    const int64_t adders = (int64_t)multiprocessors * MHC_ADDERS_PER_MULTIPROCESSOR / mhc_ceil(k, MHC_COLUMNS);
    const int64_t useful = mhc_ceil(tokens, MHC_LEAST_TOKENS);
    parts.units = units < most ? units : most;
    parts.adders = adders < useful ? adders : useful;
    if (parts.adders < 1) parts.adders = 1;
    parts.v_stride = mhc_groups(hc) * MHC_GROUP;
    parts.side_stride = mhc_ceil(hc + 1, MHC_SIDE) * MHC_SIDE;
    parts.history_stride = blocks ? hc * hc + 2 * steps * hc : 2 * steps * MHC_UNIT_THREADS;
    parts.v = 0;
    parts.side = tokens * parts.v_stride;
    parts.dots = parts.side + tokens * parts.side_stride;
    parts.history = parts.dots + tokens * hc;
    parts.sums = parts.history + parts.units * parts.history_stride;
    parts.totals = parts.sums + parts.units * 2 * m;
    parts.dphi = parts.totals + 2 * m;
    parts.floats = parts.dphi + parts.adders * k * m;
    return parts;
}

/* Of a whole workspace; 0 multiprocessors are a CPU. */
static inline int64_t mhc_forward_floats(int32_t multiprocessors, int64_t tokens, int64_t hc, int64_t c, int terms) {
    if (multiprocessors == 0) return mhc_slab_floats(hc * c, mhc_m(hc));
    return mhc_cut_forward(multiprocessors, tokens, hc, c, terms).floats;
}
static inline int64_t mhc_backward_floats(int32_t multiprocessors, int64_t tokens, int64_t hc, int64_t c,
                                          int64_t steps) {
    if (multiprocessors == 0) return mhc_cpu_backward_floats(tokens, hc, c, steps);
    return mhc_cut_backward(multiprocessors, tokens, hc, c, steps).floats;
}

#endif
