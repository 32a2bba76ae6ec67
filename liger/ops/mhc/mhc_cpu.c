/* mhc_cpu.c - pre-aggregation, post-aggregation and residual of hyper-connections on the CPU, compiled once per instruction
 * set. A token's streams stay in L2 between the walks that take its columns and those that take its products. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"
#include "liger/ops/mhc/mhc_problem.h"
#include "liger/ops/mhc/mhc_streams_cpu.h"

enum { BYTES_PER_CHUNK = 256 << 10 };

static int64_t tokens_per_chunk(int64_t hc, int64_t c, liger_dtype dtype) {
    return 1 + BYTES_PER_CHUNK / (hc * c * (int64_t)liger_dtype_size(dtype));
}

LIGER_TEMPLATE v_f32 f_at(liger_dtype t, liger_dtype dtype, const void *f, int64_t i, int n) {
    return dtype == t ? v_load_n(t, f, i, n) : v_load_n(LIGER_F32, f, i, n);
}

/* ---- products of one stream with up to four ------------------------------------------------------------------------ */

/* to[j] = ⟨a, b[j]⟩: a is read once for all; b's lie c apart. */
LIGER_TEMPLATE void dots(liger_dtype t, int count, const void *a, int64_t first, const void *b, int64_t second,
                         int64_t c, float *to) {
    v_f32 sum[4][2];
    for (int j = 0; j < count; j++) sum[j][0] = sum[j][1] = v_zero();
    V_FOR_EACH_CHAIN(i, n, chain, 2, c, {
        const v_f32 value = v_load_n(t, a, first + i, n);
        for (int j = 0; j < count; j++)
            sum[j][chain] = v_fma(value, v_load_n(t, b, second + j * c + i, n), sum[j][chain]);
    });
    for (int j = 0; j < count; j++) to[j] = v_sum(v_add(sum[j][0], sum[j][1]));
}
LIGER_TEMPLATE void all_dots(liger_dtype t, int64_t hc, const void *a, int64_t first, const void *b, int64_t second,
                             int64_t c, float *to) {
    int64_t s = 0;
    for (; s + 4 <= hc; s += 4) dots(t, 4, a, first, b, second + s * c, c, to + s);
    for (; s < hc; s++) dots(t, 1, a, first, b, second + s * c, c, to + s);
}
LIGER_TEMPLATE float dot_with_f(liger_dtype t, liger_dtype tf, const void *a, int64_t first, const void *f,
                                int64_t second, int64_t c) {
    v_f32 sum[2] = {v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, chain, 2, c,
                     { sum[chain] = v_fma(v_load_n(t, a, first + i, n), f_at(t, tf, f, second + i, n), sum[chain]); });
    return v_sum(v_add(sum[0], sum[1]));
}

/* ---- pre-aggregation ------------------------------------------------------------------------------------------------ */

LIGER_TEMPLATE void pre_token(liger_dtype t, int64_t hc, const struct mhc_pre_forward_problem *p, int64_t n) {
    const float *h = p->h_pre + n * hc;
    V_FOR_EACH(i, count, p->c, {
        v_f32 sum = v_zero();
        for (int64_t s = 0; s < hc; s++)
            sum = v_fma(v_set(h[s]), v_load_n(t, p->x, (n * hc + s) * p->c + i, count), sum);
        v_store_n(t, p->y, n * p->c + i, count, sum);
    });
}
LIGER_TEMPLATE void pre_tokens(liger_dtype t, const struct mhc_pre_forward_problem *p, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) WITH_STREAMS(p->hc, pre_token(t, STREAMS, p, n));
}
static void pre_chunk(void *argument, int64_t begin, int64_t end) {
    const struct mhc_pre_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, pre_tokens(LIGER_T, p, begin, end))
}

LIGER_TEMPLATE void pre_backward_tokens(liger_dtype t, const struct mhc_pre_backward_problem *p, int64_t begin,
                                        int64_t end) {
    for (int64_t n = begin; n < end; n++) {
        const int64_t stream = n * p->hc;
        if (p->dh_pre) all_dots(t, p->hc, p->dy, n * p->c, p->x, stream * p->c, p->c, p->dh_pre + stream);
        for (int64_t r = stream; p->dx && r < stream + p->hc; r++)
            V_FOR_EACH(i, count, p->c, {
                const v_f32 up = v_load_n(t, p->dy, n * p->c + i, count);
                v_store_n(t, p->dx, r * p->c + i, count, v_mul(v_set(p->h_pre[r]), up));
            });
    }
}
static void pre_backward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct mhc_pre_backward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, pre_backward_tokens(LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(mhc_pre_forward)(liger_context *context, const struct mhc_pre_forward_problem *problem,
                                        liger_stream stream) {
    (void)stream;
    struct mhc_pre_forward_problem p = *problem;
    liger_parallel_for(context, p.tokens, tokens_per_chunk(p.hc, p.c, p.dtype), pre_chunk, &p);
    return LIGER_OK;
}
liger_status LIGER_CPU(mhc_pre_backward)(liger_context *context, const struct mhc_pre_backward_problem *problem,
                                         liger_stream stream) {
    (void)stream;
    struct mhc_pre_backward_problem p = *problem;
    liger_parallel_for(context, p.tokens, tokens_per_chunk(p.hc, p.c, p.dtype), pre_backward_chunk, &p);
    return LIGER_OK;
}

/* ---- post-aggregation and residual --------------------------------------------------------------------------------- */

LIGER_TEMPLATE void post_token(liger_dtype t, liger_dtype tf, int64_t hc, const struct mhc_post_res_forward_problem *p,
                               int64_t n) {
    const float *h_post = p->h_post + n * hc, *h_res = p->h_res + n * hc * hc;
    V_FOR_EACH(i, count, p->c, {
        const v_f32 f = f_at(t, tf, p->f, n * p->c + i, count);
        for (int64_t o = 0; o < hc; o++) {
            v_f32 sum = v_mul(v_set(h_post[o]), f);
            for (int64_t s = 0; s < hc; s++)
                sum = v_fma(v_set(h_res[o * hc + s]), v_load_n(t, p->x, (n * hc + s) * p->c + i, count), sum);
            v_store_n(t, p->y, (n * hc + o) * p->c + i, count, sum);
        }
    });
}
LIGER_TEMPLATE void post_tokens(liger_dtype t, const struct mhc_post_res_forward_problem *p, int64_t begin,
                                int64_t end) {
    for (int64_t n = begin; n < end; n++)
        if (p->f_dtype == t) WITH_STREAMS(p->hc, post_token(t, t, STREAMS, p, n));
        else post_token(t, LIGER_F32, p->hc, p, n);
}
static void post_chunk(void *argument, int64_t begin, int64_t end) {
    const struct mhc_post_res_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, post_tokens(LIGER_T, p, begin, end))
}

/* dx and df, column by column. */
LIGER_TEMPLATE void post_backward_columns(liger_dtype t, int64_t hc, const struct mhc_post_res_backward_problem *p,
                                          int64_t n) {
    const float *h_post = p->h_post + n * hc, *h_res = p->h_res + n * hc * hc;
    V_FOR_EACH(i, count, p->c, {
        for (int64_t s = 0; p->dx && s < hc; s++) {
            v_f32 sum = v_zero();
            for (int64_t o = 0; o < hc; o++)
                sum = v_fma(v_set(h_res[o * hc + s]), v_load_n(t, p->dy, (n * hc + o) * p->c + i, count), sum);
            v_store_n(t, p->dx, (n * hc + s) * p->c + i, count, sum);
        }
        v_f32 df = v_zero();
        for (int64_t o = 0; p->df && o < hc; o++)
            df = v_fma(v_set(h_post[o]), v_load_n(t, p->dy, (n * hc + o) * p->c + i, count), df);
        if (p->df && p->f_dtype == t) v_store_n(t, p->df, n * p->c + i, count, df);
        else if (p->df) v_store_n(LIGER_F32, p->df, n * p->c + i, count, df);
    });
}
LIGER_TEMPLATE void post_backward_tokens(liger_dtype t, const struct mhc_post_res_backward_problem *p, int64_t begin,
                                         int64_t end) {
    const int64_t hc = p->hc, c = p->c;
    for (int64_t n = begin; n < end; n++) {
        for (int64_t r = n * hc; r < (n + 1) * hc; r++) {
            if (p->dh_res) all_dots(t, hc, p->dy, r * c, p->x, n * hc * c, c, p->dh_res + r * hc);
            if (p->dh_post && p->f_dtype == t) p->dh_post[r] = dot_with_f(t, t, p->dy, r * c, p->f, n * c, c);
            else if (p->dh_post) p->dh_post[r] = dot_with_f(t, LIGER_F32, p->dy, r * c, p->f, n * c, c);
        }
        if (p->dx || p->df) WITH_STREAMS(hc, post_backward_columns(t, STREAMS, p, n));
    }
}
static void post_backward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct mhc_post_res_backward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, post_backward_tokens(LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(mhc_post_res_forward)(liger_context *context, const struct mhc_post_res_forward_problem *problem,
                                             liger_stream stream) {
    (void)stream;
    struct mhc_post_res_forward_problem p = *problem;
    liger_parallel_for(context, p.tokens, tokens_per_chunk(p.hc, p.c, p.dtype), post_chunk, &p);
    return LIGER_OK;
}
liger_status LIGER_CPU(mhc_post_res_backward)(liger_context *context,
                                              const struct mhc_post_res_backward_problem *problem,
                                              liger_stream stream) {
    (void)stream;
    struct mhc_post_res_backward_problem p = *problem;
    liger_parallel_for(context, p.tokens, tokens_per_chunk(p.hc, p.c, p.dtype), post_backward_chunk, &p);
    return LIGER_OK;
}
