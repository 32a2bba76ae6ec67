/* attn_res_cpu.c - attn_res on the CPU, compiled once per instruction set. The blocks of a row stay in L2 between the walks. */
#include <math.h>

#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"
#include "liger/ops/attn_res/attn_res_problem.h"

enum { BYTES_PER_CHUNK = 64 << 10, COLUMNS = 1024 };

/* n parameters of dtype t or f32. */
LIGER_TEMPLATE v_f32 parameters_at(liger_dtype t, liger_dtype dtype, const void *parameters, int64_t i, int n) {
    return dtype == t ? v_load_n(t, parameters, i, n) : v_load_n(LIGER_F32, parameters, i, n);
}

/* x̂ as it meets the norm's weight. */
LIGER_TEMPLATE v_f32 rounded_to(int32_t dtype, v_f32 x) {
    if (dtype == LIGER_F32) return x;
    return dtype == LIGER_F16 ? v_round_to_f16(x) : v_round_to_bf16(x);
}
#define U_AT(t, p, i, n)                                                                                               \
    v_mul(parameters_at(t, (p)->query_dtype, (p)->query, i, n), parameters_at(t, (p)->norm_dtype, (p)->norm, i, n))

static float sum_of(const v_f32 sum[4]) { return v_sum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3]))); }

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* ⟨query, k⟩ of one block; *rstd is set. */
LIGER_TEMPLATE float score_of(liger_dtype t, const struct attn_res_forward_problem *p, const void *v, float *rstd) {
    v_f32 squares[4] = {v_zero(), v_zero(), v_zero(), v_zero()}, dot[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 4, p->cols, {
        const v_f32 value = v_load_n(t, v, i, n);
        squares[k] = v_fma(value, value, squares[k]);
    });
    *rstd = 1.0f / sqrtf(sum_of(squares) / (float)p->cols + p->epsilon);
    const v_f32 factor = v_set(*rstd);
    V_FOR_EACH_CHAIN(i, n, k, 4, p->cols, {
        const v_f32 normal = rounded_to(p->normal_dtype, v_mul(v_load_n(t, v, i, n), factor));
        dot[k] = v_fma(U_AT(t, p, i, n), normal, dot[k]);
    });
    return sum_of(dot);
}

LIGER_TEMPLATE void mix(liger_dtype t, const struct attn_res_forward_problem *p, int64_t r, void *h) {
    float sum[COLUMNS];
    for (int64_t first = 0; first < p->cols; first += COLUMNS) {
        const int64_t count = p->cols - first < COLUMNS ? p->cols - first : COLUMNS;
        for (int64_t block = 0; block < p->blocks; block++) {
            const int64_t row = block * p->rows + r;
            const void *v = row_of(p->v, row, f_size(t));
            const v_f32 share = v_set(p->alpha[row]);
            V_FOR_EACH(i, n, count, {
                const v_f32 so_far = block ? v_load_n(LIGER_F32, sum, i, n) : v_zero();
                v_store_n(LIGER_F32, sum, i, n, v_fma(share, v_load_n(t, v, first + i, n), so_far));
            });
        }
        V_FOR_EACH(i, n, count, v_store_n(t, h, first + i, n, v_load_n(LIGER_F32, sum, i, n)));
    }
}

LIGER_TEMPLATE void forward_row(liger_dtype t, const struct attn_res_forward_problem *p, int64_t r) {
    float most = -INFINITY, total = 0;
    for (int64_t block = 0; block < p->blocks; block++) {
        const int64_t row = block * p->rows + r;
        const float score = score_of(t, p, row_of(p->v, row, f_size(t)), &p->rstd[row]);
        p->alpha[row] = score;
        most = score > most ? score : most; /* a NaN is found in the sum */
    }
    for (int64_t row = r; row < p->blocks * p->rows; row += p->rows)
        total += p->alpha[row] = expf(p->alpha[row] - most);
    for (int64_t row = r; row < p->blocks * p->rows; row += p->rows) p->alpha[row] /= total;
    mix(t, p, r, row_of(p->h, r, f_size(t)));
}

LIGER_TEMPLATE void forward_rows(liger_dtype t, const struct attn_res_forward_problem *p, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) forward_row(t, p, r);
}
static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct attn_res_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, forward_rows(LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(attn_res_forward)(liger_context *context, const struct attn_res_forward_problem *problem,
                                         liger_stream stream) {
    (void)stream;
    struct attn_res_forward_problem p = *problem;
    const int64_t row_bytes = p.blocks * p.cols * (int64_t)liger_dtype_size(p.dtype);
    liger_parallel_for(context, p.rows, 1 + BYTES_PER_CHUNK / row_bytes, forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

typedef struct attn_res_backward_problem problem;

/* ⟨dh, v⟩ and mean(u·x̂) of one block. */
LIGER_TEMPLATE void dots_of(liger_dtype t, const problem *p, const void *dh, int64_t row, float *along, float *mean) {
    const void *v = row_of(p->v, row, f_size(t));
    const v_f32 rstd = v_set(p->rstd[row]);
    v_f32 first[4] = {v_zero(), v_zero(), v_zero(), v_zero()}, second[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 4, p->cols, {
        const v_f32 value = v_load_n(t, v, i, n);
        first[k] = v_fma(v_load_n(t, dh, i, n), value, first[k]);
        second[k] = v_fma(U_AT(t, p, i, n), v_mul(value, rstd), second[k]);
    });
    *along = sum_of(first), *mean = sum_of(second) / (float)p->cols;
}

/* dv of one block, and its part of Σ ds·x̂ (NULL: nobody asks). */
LIGER_TEMPLATE void backward_block(liger_dtype t, const problem *p, const void *dh, int64_t row, float ds, float mean,
                                   float *sum) {
    const void *v = row_of(p->v, row, f_size(t));
    void *dv = p->dv.data ? row_of(p->dv, row, f_size(t)) : NULL;
    const v_f32 rstd = v_set(p->rstd[row]), share = v_set(p->alpha[row]), slope = v_set(ds);
    V_FOR_EACH(i, n, p->cols, {
        const v_f32 normal = v_mul(v_load_n(t, v, i, n), rstd);
        const v_f32 rounded = rounded_to(p->normal_dtype, normal);
        if (sum) v_store_n(LIGER_F32, sum, i, n, v_fma(slope, rounded, v_load_n(LIGER_F32, sum, i, n)));
        if (dv) {
            const v_f32 rest = v_mul(v_mul(slope, rstd), v_fnma(v_set(mean), normal, U_AT(t, p, i, n)));
            v_store_n(t, dv, i, n, v_fma(share, v_load_n(t, dh, i, n), rest));
        }
    });
}

LIGER_TEMPLATE void backward_row(liger_dtype t, const problem *p, int64_t r, float *sum) {
    const void *dh = row_of(p->dh, r, f_size(t));
    const int64_t end = p->blocks * p->rows;
    float *along = p->workspace, *mean = along + end, total = 0;
    for (int64_t row = r; row < end; row += p->rows) {
        dots_of(t, p, dh, row, &along[row], &mean[row]);
        total += p->alpha[row] * along[row];
    }
    for (int64_t row = r; row < end; row += p->rows)
        backward_block(t, p, dh, row, p->alpha[row] * (along[row] - total), mean[row], sum);
}

LIGER_TEMPLATE void backward_rows(liger_dtype t, const problem *p, int64_t begin, int64_t end, float *sum) {
    for (int64_t r = begin; r < end; r++) backward_row(t, p, r, sum);
}

static float *sums_of(const problem *p, int64_t unit) {
    return p->workspace + attn_res_sums(p->blocks, p->rows) + unit * p->cols;
}

static void backward_unit(void *argument, int64_t unit, int64_t end) {
    const problem *p = argument;
    const int64_t per = (p->rows + p->units - 1) / p->units;
    for (; unit < end; unit++) {
        float *sum = p->dquery || p->dnorm ? sums_of(p, unit) : NULL;
        const int64_t first = unit * per, last = first + per < p->rows ? first + per : p->rows;
        if (sum) memset(sum, 0, (size_t)p->cols * sizeof *sum);
        LIGER_FOR_FLOAT(p->dtype, backward_rows(LIGER_T, p, first, last, sum))
    }
}

LIGER_TEMPLATE void finish(liger_dtype t, const problem *p, int64_t begin, int64_t end) {
    V_FOR_EACH(k, n, end - begin, {
        const int64_t i = begin + k;
        v_f32 sum = v_zero();
        for (int64_t unit = 0; unit < p->units; unit++) sum = v_add(sum, v_load_n(LIGER_F32, sums_of(p, unit), i, n));
        const v_f32 query = v_mul(sum, parameters_at(t, p->norm_dtype, p->norm, i, n));
        const v_f32 norm = v_mul(sum, parameters_at(t, p->query_dtype, p->query, i, n));
        if (p->dquery && p->query_dtype == t) v_store_n(t, p->dquery, i, n, query);
        else if (p->dquery) v_store_n(LIGER_F32, p->dquery, i, n, query);
        if (p->dnorm && p->norm_dtype == t) v_store_n(t, p->dnorm, i, n, norm);
        else if (p->dnorm) v_store_n(LIGER_F32, p->dnorm, i, n, norm);
    });
}
static void finish_columns(void *argument, int64_t begin, int64_t end) {
    const problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, finish(LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(attn_res_backward)(liger_context *context, const struct attn_res_backward_problem *given,
                                          liger_stream stream) {
    (void)stream;
    problem p = *given;
    if (p.rows > 0) liger_parallel_for(context, p.units, 1, backward_unit, &p);
    if (p.dquery || p.dnorm) liger_parallel_for(context, p.cols, COLUMNS, finish_columns, &p);
    return LIGER_OK;
}
