/* mhc_problem.h - what a backend sees: flat, checked, in one piece. k = hc · c, m = hc · (hc + 2). */
#ifndef LIGER_OPS_MHC_PROBLEM_H
#define LIGER_OPS_MHC_PROBLEM_H

#include "liger/core/rows.h"

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
/* Parts of a workspace begin at 16 bytes. */
LIGER_HOST_DEVICE static inline int64_t mhc_padded(int64_t floats) { return mhc_ceil(floats, 4) * 4; }

/* The CPU cuts k in slabs, whose part of phi stays in a core's cache, and tokens in blocks. */
enum { MHC_SLABS = 16, MHC_LEAST_SLAB = 64, MHC_MOST_SLAB = 1024, MHC_BLOCK = 64 };
static inline int64_t mhc_slab(int64_t k) {
    const int64_t wanted = mhc_ceil(mhc_ceil(k, MHC_SLABS), MHC_LEAST_SLAB) * MHC_LEAST_SLAB;
    return wanted < MHC_MOST_SLAB ? wanted : MHC_MOST_SLAB;
}
/* phi or its gradient as [slab, m, column of the slab] in f32. */
static inline int64_t mhc_slab_floats(int64_t k, int64_t m) { return mhc_ceil(k, mhc_slab(k)) * m * mhc_slab(k); }

/* A token's Sinkhorn iteration to be run backwards: the matrix after every step, what each step has divided by, a gradient. */
static inline int64_t mhc_history(int64_t hc, int64_t steps) { return 2 * steps * (hc * hc + hc) + hc * hc; }

/* v [tokens, m] = rstd · dmix, and what dx takes of x and of dx_in. */
LIGER_HOST_DEVICE static inline int64_t mhc_per_token(int64_t hc) { return mhc_m(hc) + 1 + hc; }

/* On a GPU: tokens of a block of a product; blocks along k, where there are few tokens; who add up tokens. */
enum { MHC_TILE = 64, MHC_STEP = 64, MHC_GROUP = 24, MHC_UNITS = 64, MHC_LEAST_PIECE = 1024 };
static inline int64_t mhc_pieces(int32_t multiprocessors, int64_t tokens, int64_t hc, int64_t k) {
    const int64_t blocks = mhc_ceil(tokens, MHC_TILE) * mhc_ceil(mhc_m(hc), MHC_GROUP);
    const int64_t wanted = 2 * (int64_t)multiprocessors / (blocks ? blocks : 1), most = mhc_ceil(k, MHC_LEAST_PIECE);
    const int64_t pieces = wanted < most ? wanted : most;
    return pieces < 1 ? 1 : pieces;
}

static inline int64_t mhc_forward_floats(int32_t multiprocessors, int64_t tokens, int64_t hc, int64_t c) {
    const int64_t k = hc * c, m = mhc_m(hc);
    if (multiprocessors == 0) return mhc_slab_floats(k, m);
    (void)tokens;
    return 0;
}

static inline int64_t mhc_backward_floats(int32_t multiprocessors, int64_t tokens, int64_t hc, int64_t c,
                                          int64_t steps) {
    const int64_t k = hc * c, m = mhc_m(hc), blocks = mhc_ceil(tokens, MHC_BLOCK);
    if (multiprocessors == 0)
        return tokens * mhc_per_token(hc) + blocks * (2 * m + mhc_history(hc, steps)) + 2 * mhc_slab_floats(k, m);
    return 0;
}

#endif
