/* mhc_coeffs_cpu.c - the coefficients of hyper-connections on the CPU, compiled once per instruction set.
 *
 * Forward: a few tokens at a time go through phi, slab by slab, as f32; the coefficients follow, and x_in while the tokens are
 * still in a cache. Backward: first the coefficients of all tokens, then slab by slab all tokens, so that a thread has its part
 * of dphi alone and x is read once for dx and dphi together. */
#include <math.h>

#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"
#include "liger/ops/mhc/mhc_problem.h"
#include "liger/ops/mhc/mhc_streams_cpu.h"

enum { TOKENS = 8, COLUMNS = 3 };
#if defined(__AVX512F__) || defined(__aarch64__)
enum { TILE = 8 }; /* tokens whose sums lie in registers, for three columns of phi */
#else
enum { TILE = 4 };
#endif

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- one token's coefficients ------------------------------------------------------------------------------------ */

static float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }
/* Its derivative: near 1 the difference from 1 would be lost. */
static float logistic_slope(float x) { return logistic(x) * logistic(-x); }

static float logit(const struct mhc_formula *f, const float *mix, float alpha, int64_t m) {
    return mix[m] * alpha + f->b[m];
}

/* The softmax of the rows of logits, a [out, in]. */
LIGER_TEMPLATE void softmax_rows(int64_t hc, const struct mhc_formula *f, const float *mix, float *a) {
    for (int64_t o = 0; o < hc; o++) {
        float *row = a + o * hc, most = -INFINITY, sum = 0;
        for (int64_t i = 0; i < hc; i++) {
            row[i] = logit(f, mix, *f->alpha_res, 2 * hc + o * hc + i);
            most = row[i] > most ? row[i] : most; /* a NaN is found in the sum */
        }
        for (int64_t i = 0; i < hc; i++) sum += row[i] = expf(row[i] - most);
        for (int64_t i = 0; i < hc; i++) row[i] /= sum;
    }
}

/* to = a divided by its sums over out (columns of a) or over in, plus epsilon; they may be one. */
LIGER_TEMPLATE void divide_columns(int64_t hc, float epsilon, const float *a, float *divisor, float *to) {
    for (int64_t i = 0; i < hc; i++) divisor[i] = epsilon;
    for (int64_t o = 0; o < hc; o++)
        for (int64_t i = 0; i < hc; i++) divisor[i] += a[o * hc + i];
    for (int64_t o = 0; o < hc; o++)
        for (int64_t i = 0; i < hc; i++) to[o * hc + i] = a[o * hc + i] / divisor[i];
}
LIGER_TEMPLATE void divide_rows(int64_t hc, float epsilon, const float *a, float *divisor, float *to) {
    for (int64_t o = 0; o < hc; o++) {
        divisor[o] = epsilon;
        for (int64_t i = 0; i < hc; i++) divisor[o] += a[o * hc + i];
        for (int64_t i = 0; i < hc; i++) to[o * hc + i] = a[o * hc + i] / divisor[o];
    }
}

/* From softmax + epsilon in the first matrix: each step makes the one `size` behind it, and its divisors `line` behind. */
LIGER_TEMPLATE void sinkhorn_steps(int64_t hc, const struct mhc_formula *f, float *a, int64_t size, float *divisor,
                                   int64_t line) {
    for (int64_t step = 1; step < 2 * f->steps; step++, a += size, divisor += line)
        if (step % 2) divide_columns(hc, f->sinkhorn_eps, a, divisor, a + size);
        else divide_rows(hc, f->sinkhorn_eps, a, divisor, a + size);
}

LIGER_TEMPLATE void residual_matrix(int64_t hc, const struct mhc_formula *f, const float *mix, float *a,
                                    float *divisor) {
    softmax_rows(hc, f, mix, a);
    for (int64_t i = 0; i < hc * hc; i++) a[i] += f->sinkhorn_eps;
    sinkhorn_steps(hc, f, a, 0, divisor, 0);
}

/* g, the gradient of the last matrix, becomes that of the logits. `room` is mhc_history() without g. */
LIGER_TEMPLATE void residual_backward(int64_t hc, const struct mhc_formula *f, const float *mix, float *room,
                                      float *g) {
    const int64_t size = hc * hc, last = 2 * f->steps - 1;
    float *divisor = room + (last + 1) * size, dot;
    softmax_rows(hc, f, mix, room);
    for (int64_t i = 0; i < size; i++) room[i] += f->sinkhorn_eps;
    sinkhorn_steps(hc, f, room, size, divisor, hc);
    for (int64_t step = last; step > 0; step--) {
        const float *a = room + step * size, *by = divisor + (step - 1) * hc;
        for (int64_t l = 0; l < hc; l++) {
            const int64_t line = step % 2 ? 1 : hc, along = step % 2 ? hc : 1;
            dot = 0;
            for (int64_t j = 0; j < hc; j++) dot += g[l * line + j * along] * a[l * line + j * along];
            for (int64_t j = 0; j < hc; j++) g[l * line + j * along] = (g[l * line + j * along] - dot) / by[l];
        }
    }
    softmax_rows(hc, f, mix, room);
    for (int64_t o = 0; o < hc; o++) {
        dot = 0;
        for (int64_t i = 0; i < hc; i++) dot += g[o * hc + i] * room[o * hc + i];
        for (int64_t i = 0; i < hc; i++) g[o * hc + i] = (g[o * hc + i] - dot) * room[o * hc + i];
    }
}

static void coefficients(const struct mhc_coeffs_forward_problem *p, int64_t n) {
    const struct mhc_formula *f = &p->formula;
    const int64_t hc = p->hc;
    const float *mix = p->mix + n * mhc_m(hc);
    float *h_res = p->h_res + n * hc * hc, *h_post = p->h_post + n * hc;
    WITH_STREAMS(hc,
                 residual_matrix(STREAMS, f, mix, h_res, h_post)); /* h_post is room for divisors until it is made */
    for (int64_t s = 0; s < hc; s++) {
        p->h_pre[n * hc + s] = logistic(logit(f, mix, *f->alpha_pre, s)) + f->pre_eps;
        h_post[s] = logistic(logit(f, mix, *f->alpha_post, hc + s)) * f->post_mult;
    }
}

/* ---- phi in slabs ------------------------------------------------------------------------------------------------- */

/* A slab as [m, column]; columns past the end are zero. */
static void pack_slab(liger_dtype dtype, const void *phi, int64_t k, int64_t m, int64_t slab, float *to) {
    const int64_t width = mhc_slab(k), first = slab * width, count = least(width, k - first);
    for (int64_t j = 0; j < width; j++)
        for (int64_t i = 0; i < m; i++)
            to[i * width + j] = j < count ? f32_load(dtype, phi, (first + j) * m + i) : 0.0f;
}
static void pack_slabs(void *argument, int64_t begin, int64_t end) {
    const struct mhc_coeffs_forward_problem *p = argument;
    const int64_t k = p->hc * p->c, m = mhc_m(p->hc);
    for (int64_t slab = begin; slab < end; slab++)
        pack_slab(p->phi_dtype, p->phi, k, m, slab, p->workspace + slab * m * mhc_slab(k));
}
static void unpack_slab(liger_dtype dtype, void *dphi, int64_t k, int64_t m, int64_t slab, const float *from) {
    const int64_t width = mhc_slab(k), first = slab * width, count = least(width, k - first);
    for (int64_t j = 0; j < count; j++)
        for (int64_t i = 0; i < m; i++) f32_store(dtype, dphi, (first + j) * m + i, from[i * width + j]);
}

/* ---- forward ------------------------------------------------------------------------------------------------------ */

/* mix += x · phi of a slab, for a few tokens and columns whose sums lie in registers. */
LIGER_TEMPLATE void add_tile(int tokens, int columns, const float *x, const float *phi, int64_t width, float *mix,
                             int64_t m) {
    v_f32 sum[TILE][COLUMNS];
    for (int a = 0; a < tokens; a++)
        for (int b = 0; b < columns; b++) sum[a][b] = v_zero();
    for (int64_t j = 0; j < width; j += V_LANES) {
        v_f32 factor[COLUMNS];
        for (int b = 0; b < columns; b++) factor[b] = v_load_f32(phi + b * width + j);
#pragma GCC unroll 8
        for (int a = 0; a < tokens; a++) {
            const v_f32 value = v_load_f32(x + a * width + j);
#pragma GCC unroll 3
            for (int b = 0; b < columns; b++) sum[a][b] = v_fma(value, factor[b], sum[a][b]);
        }
    }
    for (int a = 0; a < tokens; a++)
        for (int b = 0; b < columns; b++) mix[a * m + b] += v_sum(sum[a][b]);
}

LIGER_TEMPLATE void add_tokens(int tokens, const float *x, const float *phi, int64_t width, float *mix, int64_t m) {
    int64_t i = 0;
    for (; i + COLUMNS <= m; i += COLUMNS) add_tile(tokens, COLUMNS, x, phi + i * width, width, mix + i, m);
    for (; i < m; i++) add_tile(tokens, 1, x, phi + i * width, width, mix + i, m);
}

/* A slab of a token as f32, zeros behind its end; its squares. */
LIGER_TEMPLATE float widen(liger_dtype t, const void *x, int64_t first, int64_t count, int64_t width, float *to) {
    v_f32 squares[2] = {v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, chain, 2, count, {
        const v_f32 value = v_load_n(t, x, first + i, n);
        v_store_n(LIGER_F32, to, i, n, value);
        squares[chain] = v_fma(value, value, squares[chain]);
    });
    memset(to + count, 0, (size_t)(width - count) * sizeof *to);
    return v_sum(v_add(squares[0], squares[1]));
}

LIGER_TEMPLATE void mix_tokens(liger_dtype t, const struct mhc_coeffs_forward_problem *p, int64_t begin, int count) {
    const int64_t k = p->hc * p->c, m = mhc_m(p->hc), width = mhc_slab(k);
    float x[TOKENS * MHC_MOST_SLAB], squares[TOKENS] = {0}, *mix = p->mix + begin * m;
    memset(mix, 0, (size_t)(count * m) * sizeof *mix);
    for (int64_t first = 0; first < k; first += width) {
        const float *phi = p->workspace + first * m;
        for (int a = 0; a < count; a++)
            squares[a] += widen(t, p->x, (begin + a) * k + first, least(width, k - first), width, x + a * width);
        int a = 0;
        for (; a + TILE <= count; a += TILE) add_tokens(TILE, x + a * width, phi, width, mix + a * m, m);
        for (; a < count; a++) add_tokens(1, x + a * width, phi, width, mix + a * m, m);
    }
    for (int a = 0; a < count; a++) {
        const float rstd = 1.0f / sqrtf(squares[a] / (float)k + p->rms_eps);
        for (int64_t i = 0; i < m; i++) mix[a * m + i] *= rstd;
        p->rstd[begin + a] = rstd;
    }
}

LIGER_TEMPLATE void forward_tokens(liger_dtype t, const struct mhc_coeffs_forward_problem *p, int64_t begin,
                                   int64_t end) {
    mix_tokens(t, p, begin, (int)(end - begin));
    for (int64_t n = begin; n < end; n++) {
        const float *h_pre = p->h_pre + n * p->hc;
        coefficients(p, n);
        if (p->x_in == NULL) continue;
        V_FOR_EACH(i, count, p->c, {
            v_f32 sum = v_zero();
            for (int64_t s = 0; s < p->hc; s++)
                sum = v_fma(v_set(h_pre[s]), v_load_n(t, p->x, (n * p->hc + s) * p->c + i, count), sum);
            v_store_n(t, p->x_in, n * p->c + i, count, sum);
        });
    }
}
static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct mhc_coeffs_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, forward_tokens(LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(mhc_coeffs_forward)(liger_context *context, const struct mhc_coeffs_forward_problem *problem,
                                           liger_stream stream) {
    (void)stream;
    struct mhc_coeffs_forward_problem p = *problem;
    const int64_t k = p.hc * p.c;
    liger_parallel_for(context, mhc_ceil(k, mhc_slab(k)), 1, pack_slabs, &p);
    liger_parallel_for(context, p.tokens, TOKENS, forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward ----------------------------------------------------------------------------------------------------- */

/* The parts of the workspace. */
struct backward {
    struct mhc_coeffs_backward_problem p;
    int64_t k, m, slabs, blocks;
    float *v;      /* [tokens, m]: rstd · dmix */
    float *factor; /* [tokens]: what dx takes of x */
    float *h_pre;  /* [tokens, hc]: what dx takes of dx_in */
    float *sums;   /* [blocks, 2, m]: Σ dlogits, Σ dlogits · mix */
    float *room;   /* [blocks, mhc_history()] */
    float *phi, *dphi;
};

LIGER_TEMPLATE float dot_of(liger_dtype t, const void *a, int64_t first, const void *b, int64_t second, int64_t count) {
    v_f32 sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, chain, 4, count,
                     { sum[chain] = v_fma(v_load_n(t, a, first + i, n), v_load_n(t, b, second + i, n), sum[chain]); });
    return v_sum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
}

/* dlogits of a token in v. */
LIGER_TEMPLATE void logits_backward(liger_dtype t, const struct backward *w, int64_t n, float *room) {
    const struct mhc_coeffs_backward_problem *p = &w->p;
    const struct mhc_formula *f = &p->formula;
    const int64_t hc = p->hc, size = hc * hc;
    const float *mix = p->mix + n * w->m;
    float *v = w->v + n * w->m;
    for (int64_t s = 0; s < hc; s++) {
        const float pre = logit(f, mix, *f->alpha_pre, s), post = logit(f, mix, *f->alpha_post, hc + s);
        float dpre = p->dh_pre ? p->dh_pre[n * hc + s] : 0.0f;
        if (p->dx_in) dpre += dot_of(t, p->dx_in, n * p->c, p->x, (n * hc + s) * p->c, p->c);
        w->h_pre[n * hc + s] = logistic(pre) + f->pre_eps;
        v[s] = dpre * logistic_slope(pre);
        v[hc + s] = p->dh_post ? p->dh_post[n * hc + s] * f->post_mult * logistic_slope(post) : 0.0f;
    }
    if (p->dh_res == NULL) {
        memset(v + 2 * hc, 0, (size_t)size * sizeof *v);
        return;
    }
    memcpy(v + 2 * hc, p->dh_res + n * size, (size_t)size * sizeof *v);
    WITH_STREAMS(hc, residual_backward(STREAMS, f, mix, room, v + 2 * hc));
}

LIGER_TEMPLATE void backward_token(liger_dtype t, const struct backward *w, int64_t n, float *room, float *sums) {
    const struct mhc_coeffs_backward_problem *p = &w->p;
    const float *mix = p->mix + n * w->m, rstd = p->rstd[n];
    const float alpha[3] = {*p->formula.alpha_pre, *p->formula.alpha_post, *p->formula.alpha_res};
    float *v = w->v + n * w->m, along = 0;
    logits_backward(t, w, n, room);
    for (int64_t m = 0; m < w->m; m++) {
        const float by = alpha[m < p->hc ? 0 : m < 2 * p->hc ? 1 : 2];
        sums[m] += v[m];
        sums[w->m + m] += v[m] * mix[m];
        along += by * v[m] * mix[m];
        v[m] *= by * rstd;
    }
    w->factor[n] = -(rstd * rstd / (float)w->k) * along;
}

LIGER_TEMPLATE void backward_block(liger_dtype t, const struct backward *w, int64_t block) {
    const struct mhc_coeffs_backward_problem *p = &w->p;
    float *sums = w->sums + block * 2 * w->m, *room = w->room + block * mhc_history(p->hc, p->formula.steps);
    memset(sums, 0, 2 * (size_t)w->m * sizeof *sums);
    for (int64_t n = block * MHC_BLOCK; n < least(p->tokens, (block + 1) * MHC_BLOCK); n++)
        backward_token(t, w, n, room, sums);
}
static void backward_blocks(void *argument, int64_t begin, int64_t end) {
    const struct backward *w = argument;
    for (int64_t block = begin; block < end; block++) LIGER_FOR_FLOAT(w->p.dtype, backward_block(LIGER_T, w, block))
}

/* One vector of columns of a few tokens: their dx, and what they add to dphi. `at` is the column in the token, `j` in the slab,
 * `i` in the stream s. */
LIGER_TEMPLATE void backward_columns(liger_dtype t, int tokens, int n, const struct backward *w, int64_t token,
                                     int64_t s, int64_t i, int64_t j, const float *phi, float *dphi) {
    const struct mhc_coeffs_backward_problem *p = &w->p;
    const int64_t width = mhc_slab(w->k), at = s * p->c + i;
    const float *v = w->v + token * w->m;
    v_f32 x[TILE], dx[TILE];
#pragma GCC unroll 8
    for (int a = 0; a < tokens; a++) {
        x[a] = v_load_n(t, p->x, (token + a) * w->k + at, n);
        dx[a] = v_zero();
    }
    for (int64_t m = 0; m < w->m; m++) {
        const v_f32 factor = p->dx ? v_load_n(LIGER_F32, phi, m * width + j, n) : v_zero();
        v_f32 sum = p->dphi ? v_load_n(LIGER_F32, dphi, m * width + j, n) : v_zero();
#pragma GCC unroll 8
        for (int a = 0; a < tokens; a++) {
            const v_f32 by = v_set(v[a * w->m + m]);
            dx[a] = v_fma(by, factor, dx[a]);
            sum = v_fma(by, x[a], sum);
        }
        if (p->dphi) v_store_n(LIGER_F32, dphi, m * width + j, n, sum);
    }
    if (p->dx == NULL) return;
#pragma GCC unroll 8
    for (int a = 0; a < tokens; a++) {
        const int64_t row = token + a, element = row * w->k + at;
        dx[a] = v_fma(v_set(w->factor[row]), x[a], dx[a]); /* what may be large comes last */
        if (p->dx_in) dx[a] = v_fma(v_set(w->h_pre[row * p->hc + s]), v_load_n(t, p->dx_in, row * p->c + i, n), dx[a]);
        if (p->dx_so_far) dx[a] = v_add(dx[a], v_load_n(t, p->dx_so_far, element, n));
        v_store_n(t, p->dx, element, n, dx[a]);
    }
}

/* A slab of a few tokens, cut where streams end. */
LIGER_TEMPLATE void backward_tokens(liger_dtype t, int tokens, const struct backward *w, int64_t token, int64_t slab,
                                    const float *phi, float *dphi) {
    const int64_t c = w->p.c, width = mhc_slab(w->k), first = slab * width, end = least(first + width, w->k);
    for (int64_t at = first; at < end;) {
        const int64_t s = at / c, from = at - s * c, count = least(c - from, end - at), offset = at - first;
        V_FOR_EACH(i, n, count, backward_columns(t, tokens, n, w, token, s, from + i, offset + i, phi, dphi));
        at += count;
    }
}

LIGER_TEMPLATE void backward_slab(liger_dtype t, const struct backward *w, int64_t slab) {
    const int64_t tokens = w->p.tokens, size = w->m * mhc_slab(w->k);
    float *phi = w->phi + slab * size, *dphi = w->dphi + slab * size;
    int64_t token = 0;
    if (w->p.dx) pack_slab(w->p.phi_dtype, w->p.phi, w->k, w->m, slab, phi);
    if (w->p.dphi) memset(dphi, 0, (size_t)size * sizeof *dphi);
    for (; token + TILE <= tokens; token += TILE) backward_tokens(t, TILE, w, token, slab, phi, dphi);
    for (; token < tokens; token++) backward_tokens(t, 1, w, token, slab, phi, dphi);
    if (w->p.dphi) unpack_slab(w->p.phi_dtype, w->p.dphi, w->k, w->m, slab, dphi);
}
static void backward_slabs(void *argument, int64_t begin, int64_t end) {
    const struct backward *w = argument;
    for (int64_t slab = begin; slab < end; slab++) LIGER_FOR_FLOAT(w->p.dtype, backward_slab(LIGER_T, w, slab))
}

static void add_blocks(const struct backward *w) {
    const struct mhc_coeffs_backward_problem *p = &w->p;
    float *const dalpha[3] = {p->dalpha_pre, p->dalpha_post, p->dalpha_res};
    float total[3] = {0, 0, 0};
    for (int64_t m = 0; m < w->m; m++) {
        float sum = 0, along = 0;
        for (int64_t block = 0; block < w->blocks; block++) {
            sum += w->sums[block * 2 * w->m + m];
            along += w->sums[(block * 2 + 1) * w->m + m];
        }
        if (p->db) p->db[m] = sum;
        total[m < p->hc ? 0 : m < 2 * p->hc ? 1 : 2] += along;
    }
    for (int part = 0; part < 3; part++)
        if (dalpha[part]) *dalpha[part] = total[part];
}

liger_status LIGER_CPU(mhc_coeffs_backward)(liger_context *context, const struct mhc_coeffs_backward_problem *problem,
                                            liger_stream stream) {
    (void)stream;
    const int64_t k = problem->hc * problem->c, m = mhc_m(problem->hc), tokens = problem->tokens;
    const int64_t blocks = mhc_ceil(tokens, MHC_BLOCK);
    struct backward w = {.p = *problem, .k = k, .m = m, .slabs = mhc_ceil(k, mhc_slab(k)), .blocks = blocks};
    w.v = problem->workspace;
    w.factor = w.v + tokens * m;
    w.h_pre = w.factor + tokens;
    w.sums = w.h_pre + tokens * problem->hc;
    w.room = w.sums + blocks * 2 * m;
    w.phi = w.room + blocks * mhc_history(problem->hc, problem->formula.steps);
    w.dphi = w.phi + mhc_slab_floats(k, m);
    if (blocks > 0) liger_parallel_for(context, blocks, 1, backward_blocks, &w);
    if (problem->dx || problem->dphi) liger_parallel_for(context, w.slabs, 1, backward_slabs, &w);
    add_blocks(&w);
    return LIGER_OK;
}
