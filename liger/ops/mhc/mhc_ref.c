/* mhc_ref.c - mhc in double precision, straight from the formulas. */
#include "liger/ops/mhc/mhc_ref.h"

#include <math.h>
#include <stdlib.h>

#ifndef REAL
#define REAL double
#endif

static REAL logistic(REAL x) { return 1 / (1 + (REAL)exp(-(double)x)); }

/* What belongs to column m of mix: 0 pre, 1 post, 2 res. */
static int part_of(const struct mhc_ref *p, int64_t m) { return m < p->hc ? 0 : m < 2 * p->hc ? 1 : 2; }
static REAL logit(const struct mhc_ref *p, const double *mix, int64_t m) {
    return (REAL)mix[m] * (REAL)p->alpha[part_of(p, m)][0] + (REAL)p->b[m];
}

/* a[out, in] after each of the 2 · tmax steps one after the other, step 0 being the softmax; divisors[step, hc]. */
static void sinkhorn(const struct mhc_ref *p, const double *mix, REAL *a, REAL *divisor) {
    const int64_t hc = p->hc, size = hc * hc;
    for (int64_t o = 0; o < hc; o++) {
        REAL most = -INFINITY, sum = 0;
        for (int64_t i = 0; i < hc; i++) most = (REAL)fmax(most, logit(p, mix, 2 * hc + o * hc + i));
        for (int64_t i = 0; i < hc; i++)
            sum += a[o * hc + i] = (REAL)exp((double)(logit(p, mix, 2 * hc + o * hc + i) - most));
        for (int64_t i = 0; i < hc; i++) a[o * hc + i] = a[o * hc + i] / sum + (REAL)p->sinkhorn_eps;
    }
    for (int64_t step = 1; step < 2 * p->tmax; step++, a += size) {
        const int64_t line = step % 2 ? 1 : hc, along = step % 2 ? hc : 1; /* columns first, then rows, ... */
        for (int64_t l = 0; l < hc; l++) {
            REAL sum = 0;
            for (int64_t j = 0; j < hc; j++) sum += a[l * line + j * along];
            divisor[step * hc + l] = sum + (REAL)p->sinkhorn_eps;
            for (int64_t j = 0; j < hc; j++)
                a[size + l * line + j * along] = a[l * line + j * along] / divisor[step * hc + l];
        }
    }
}

static REAL *room_for_sinkhorn(const struct mhc_ref *p, REAL **divisor, REAL **gradient) {
    const int64_t steps = 2 * p->tmax, size = p->hc * p->hc;
    REAL *a = calloc((size_t)(steps * (size + p->hc) + size), sizeof *a);
    if (a == NULL) abort(); /* tests only */
    *divisor = a + steps * size;
    *gradient = *divisor + steps * p->hc;
    return a;
}

static void mix_of(const struct mhc_ref *p, int64_t n, double *mix, double *rstd) {
    const int64_t k_count = p->hc * p->c, m_count = p->hc * (p->hc + 2);
    const double *x = p->x + n * k_count;
    REAL squares = 0;
    for (int64_t k = 0; k < k_count; k++) squares += (REAL)x[k] * (REAL)x[k];
    const REAL root = (REAL)sqrt((double)(squares / (REAL)k_count + (REAL)p->rms_eps)), scale = 1 / root;
    for (int64_t m = 0; m < m_count; m++) {
        REAL sum = 0;
        for (int64_t k = 0; k < k_count; k++) sum += (REAL)x[k] * (REAL)p->phi[k * m_count + m];
        mix[m] = sum * scale;
    }
    *rstd = scale;
}

void mhc_coeffs_forward_ref(const struct mhc_ref *p, const struct mhc_ref_results *to) {
    const int64_t hc = p->hc, m_count = hc * (hc + 2), size = hc * hc;
    REAL *divisor, *gradient, *a = room_for_sinkhorn(p, &divisor, &gradient);
    for (int64_t n = 0; n < p->tokens; n++) {
        double *mix = to->mix + n * m_count;
        mix_of(p, n, mix, &to->rstd[n]);
        for (int64_t s = 0; s < hc; s++) {
            to->h_pre[n * hc + s] = logistic(logit(p, mix, s)) + (REAL)p->pre_eps;
            to->h_post[n * hc + s] = logistic(logit(p, mix, hc + s)) * (REAL)p->post_mult;
        }
        sinkhorn(p, mix, a, divisor);
        for (int64_t i = 0; i < size; i++) to->h_res[n * size + i] = a[(2 * p->tmax - 1) * size + i];
    }
    if (to->x_in) mhc_pre_forward_ref(p, to->h_pre, to->x_in);
    free(a);
}

/* dlogits of h_res, into g. */
static void sinkhorn_backward(const struct mhc_ref *p, const REAL *a, const REAL *divisor, REAL *g) {
    const int64_t hc = p->hc, size = hc * hc;
    for (int64_t step = 2 * p->tmax - 1; step > 0; step--) {
        const int64_t line = step % 2 ? 1 : hc, along = step % 2 ? hc : 1;
        for (int64_t l = 0; l < hc; l++) {
            REAL dot = 0;
            for (int64_t j = 0; j < hc; j++) dot += g[l * line + j * along] * a[step * size + l * line + j * along];
            for (int64_t j = 0; j < hc; j++)
                g[l * line + j * along] = (g[l * line + j * along] - dot) / divisor[step * hc + l];
        }
    }
    for (int64_t o = 0; o < hc; o++) {
        REAL dot = 0;
        for (int64_t i = 0; i < hc; i++) dot += g[o * hc + i] * (a[o * hc + i] - (REAL)p->sinkhorn_eps);
        for (int64_t i = 0; i < hc; i++)
            g[o * hc + i] = (g[o * hc + i] - dot) * (a[o * hc + i] - (REAL)p->sinkhorn_eps);
    }
}

static REAL dot_of(const double *a, const double *b, int64_t count) {
    REAL sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (REAL)a[i] * (REAL)b[i];
    return sum;
}

/* dlogits of a token; room: m numbers. */
static void logits_backward(const struct mhc_ref *p, const struct mhc_ref_results *up, int64_t n, REAL *dlogits) {
    const int64_t hc = p->hc, m_count = hc * (hc + 2), size = hc * hc;
    const double *mix = up->mix + n * m_count;
    REAL *divisor, *g, *a = room_for_sinkhorn(p, &divisor, &g);
    for (int64_t s = 0; s < hc; s++) {
        const REAL pre = logit(p, mix, s), post = logit(p, mix, hc + s);
        REAL dpre = up->h_pre ? up->h_pre[n * hc + s] : 0, dpost = up->h_post ? up->h_post[n * hc + s] : 0;
        if (up->x_in) dpre += dot_of(up->x_in + n * p->c, p->x + (n * hc + s) * p->c, p->c);
        dlogits[s] = dpre * logistic(pre) * logistic(-pre);
        dlogits[hc + s] = dpost * (REAL)p->post_mult * logistic(post) * logistic(-post);
    }
    for (int64_t i = 0; i < size; i++) g[i] = up->h_res ? up->h_res[n * size + i] : 0;
    if (up->h_res) {
        sinkhorn(p, mix, a, divisor);
        sinkhorn_backward(p, a, divisor, g);
    }
    for (int64_t i = 0; i < size; i++) dlogits[2 * hc + i] = g[i];
    free(a);
}

static void token_backward(const struct mhc_ref *p, const struct mhc_ref_results *up, const double *dx_so_far,
                           const struct mhc_ref_gradients *to, int64_t n, const REAL *dlogits) {
    const int64_t hc = p->hc, m_count = hc * (hc + 2), k_count = hc * p->c;
    const double *mix = up->mix + n * m_count;
    const REAL rstd = up->rstd[n];
    REAL along = 0;
    for (int64_t m = 0; m < m_count; m++) {
        const int part = part_of(p, m);
        along += dlogits[m] * (REAL)p->alpha[part][0] * (REAL)mix[m];
        if (to->db) to->db[m] = (REAL)to->db[m] + dlogits[m];
        if (to->dalpha[part]) to->dalpha[part][0] = (REAL)to->dalpha[part][0] + dlogits[m] * (REAL)mix[m];
    }
    for (int64_t k = 0; k < k_count; k++) {
        const REAL x = p->x[n * k_count + k];
        REAL dx = 0;
        for (int64_t m = 0; m < m_count; m++) {
            const REAL v = rstd * (REAL)p->alpha[part_of(p, m)][0] * dlogits[m];
            dx += v * (REAL)p->phi[k * m_count + m];
            if (to->dphi) to->dphi[k * m_count + m] = (REAL)to->dphi[k * m_count + m] + v * x;
        }
        dx -= x * rstd * rstd / (REAL)k_count * along;
        if (up->x_in)
            dx += (logistic(logit(p, mix, k / p->c)) + (REAL)p->pre_eps) * (REAL)up->x_in[n * p->c + k % p->c];
        if (to->dx) to->dx[n * k_count + k] = dx + (dx_so_far ? (REAL)dx_so_far[n * k_count + k] : 0);
    }
}

void mhc_coeffs_backward_ref(const struct mhc_ref *p, const struct mhc_ref_results *up, const double *dx_so_far,
                             const struct mhc_ref_gradients *to) {
    const int64_t m_count = p->hc * (p->hc + 2), k_count = p->hc * p->c;
    REAL *dlogits = calloc((size_t)m_count, sizeof *dlogits);
    if (dlogits == NULL) abort();
    for (int64_t i = 0; to->dphi && i < k_count * m_count; i++) to->dphi[i] = 0;
    for (int64_t i = 0; to->db && i < m_count; i++) to->db[i] = 0;
    for (int part = 0; part < 3; part++)
        if (to->dalpha[part]) to->dalpha[part][0] = 0;
    for (int64_t n = 0; n < p->tokens; n++) {
        logits_backward(p, up, n, dlogits);
        token_backward(p, up, dx_so_far, to, n, dlogits);
    }
    free(dlogits);
}

void mhc_pre_forward_ref(const struct mhc_ref *p, const double *h_pre, double *y) {
    for (int64_t n = 0; n < p->tokens; n++)
        for (int64_t i = 0; i < p->c; i++) {
            REAL sum = 0;
            for (int64_t s = 0; s < p->hc; s++)
                sum += (REAL)h_pre[n * p->hc + s] * (REAL)p->x[(n * p->hc + s) * p->c + i];
            y[n * p->c + i] = sum;
        }
}

void mhc_pre_backward_ref(const struct mhc_ref *p, const double *dy, const double *h_pre, double *dx, double *dh_pre) {
    for (int64_t r = 0; r < p->tokens * p->hc; r++) {
        const double *up = dy + r / p->hc * p->c;
        if (dh_pre) dh_pre[r] = dot_of(up, p->x + r * p->c, p->c);
        for (int64_t i = 0; dx && i < p->c; i++) dx[r * p->c + i] = (REAL)h_pre[r] * (REAL)up[i];
    }
}

void mhc_post_res_forward_ref(const struct mhc_ref *p, const double *f, const double *h_post, const double *h_res,
                              double *y) {
    for (int64_t r = 0; r < p->tokens * p->hc; r++) {
        const int64_t n = r / p->hc;
        for (int64_t i = 0; i < p->c; i++) {
            REAL sum = (REAL)h_post[r] * (REAL)f[n * p->c + i];
            for (int64_t s = 0; s < p->hc; s++)
                sum += (REAL)h_res[r * p->hc + s] * (REAL)p->x[(n * p->hc + s) * p->c + i];
            y[r * p->c + i] = sum;
        }
    }
}

void mhc_post_res_backward_ref(const struct mhc_ref *p, const double *dy, const double *f, const double *h_post,
                               const double *h_res, double *dx, double *df, double *dh_post, double *dh_res) {
    const int64_t hc = p->hc, c = p->c;
    for (int64_t r = 0; r < p->tokens * hc; r++) {
        const int64_t n = r / hc;
        if (dh_post) dh_post[r] = dot_of(dy + r * c, f + n * c, c);
        for (int64_t s = 0; dh_res && s < hc; s++) dh_res[r * hc + s] = dot_of(dy + r * c, p->x + (n * hc + s) * c, c);
        for (int64_t i = 0; dx && i < c; i++) {
            REAL sum = 0;
            for (int64_t o = 0; o < hc; o++)
                sum += (REAL)h_res[(n * hc + o) * hc + r % hc] * (REAL)dy[(n * hc + o) * c + i];
            dx[r * c + i] = sum;
        }
    }
    for (int64_t n = 0; df && n < p->tokens; n++)
        for (int64_t i = 0; i < c; i++) {
            REAL sum = 0;
            for (int64_t o = 0; o < hc; o++) sum += (REAL)h_post[n * hc + o] * (REAL)dy[(n * hc + o) * c + i];
            df[n * c + i] = sum;
        }
}
