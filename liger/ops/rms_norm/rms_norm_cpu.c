/* rms_norm_cpu.c - RMSNorm on the CPU, compiled once per instruction set.
 *
 * Two passes over a row that stays in L1/L2 between them: the sum, then the result. dweight is summed into one partial
 * row per fixed block of rows, and the partials are added in order: the same bits for any number of threads. */
#include "liger/core/fail.h"
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"
#include "liger/ops/rms_norm/rms_norm.h"
#include "liger/ops/rms_norm/rms_norm_problem.h"

#include <math.h>

/* Below this many bytes a second thread costs more than it brings. */
enum { BYTES_PER_CHUNK = 32 << 10 };

/* weight + offset of one vector of columns. */
LIGER_TEMPLATE v_f32 scale_of(liger_dtype t, liger_dtype tw, const void *weight, float offset, bool round, int64_t i,
                              int n) {
    const v_f32 scale = v_add(v_load_n(tw, weight, i, n), v_set(offset));
    return round && tw == t ? v_round_to(t, scale) : scale;
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE float sum_of_squares(liger_dtype t, const void *x, int64_t cols) {
    v_f32 sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    int64_t i = 0;
    for (; i + 4 * V_LANES <= cols; i += 4 * V_LANES)
        for (int k = 0; k < 4; k++) {
            const v_f32 value = v_load(t, x, i + k * V_LANES);
            sum[k] = v_fma(value, value, sum[k]);
        }
    for (; i < cols; i += V_LANES) {
        const int n = cols - i < V_LANES ? (int)(cols - i) : V_LANES;
        const v_f32 value = v_load_n(t, x, i, n);
        sum[0] = v_fma(value, value, sum[0]);
    }
    return v_sum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
}

LIGER_TEMPLATE void add_row(liger_dtype t, const void *x, const void *residual, void *sum, int64_t cols) {
    V_FOR_EACH(i, n, cols, v_store_n(t, sum, i, n, v_add(v_load_n(t, x, i, n), v_load_n(t, residual, i, n))));
}

LIGER_TEMPLATE void scale_row(liger_dtype t, liger_dtype tw, const struct rms_norm_forward_problem *p, const void *x,
                              void *y, float rstd) {
    const bool llama = p->casting == LIGER_CAST_LLAMA, none = p->casting == LIGER_CAST_NONE;
    const v_f32 factor = v_set(rstd);
    if (p->weight == NULL) {
        V_FOR_EACH(i, n, p->cols, v_store_n(t, y, i, n, v_mul(v_load_n(t, x, i, n), factor)));
    } else if (llama && t != LIGER_F32) {
        V_FOR_EACH(i, n, p->cols, {
            const v_f32 normal = v_round_to(t, v_mul(v_load_n(t, x, i, n), factor));
            v_store_n(t, y, i, n, v_mul(normal, scale_of(t, tw, p->weight, p->offset, false, i, n)));
        });
    } else {
        V_FOR_EACH(i, n, p->cols, {
            const v_f32 normal = v_mul(v_load_n(t, x, i, n), factor);
            v_store_n(t, y, i, n, v_mul(normal, scale_of(t, tw, p->weight, p->offset, none, i, n)));
        });
    }
}

LIGER_TEMPLATE void forward_rows(liger_dtype t, liger_dtype tw, const struct rms_norm_forward_problem *p, int64_t begin,
                                 int64_t end) {
    const size_t element = liger_dtype_size(t);
    for (int64_t r = begin; r < end; r++) {
        const void *x = row_of(p->x, r, element);
        if (p->residual.data) {
            void *sum = row_of(p->sum, r, element);
            add_row(t, x, row_of(p->residual, r, element), sum, p->cols);
            x = sum;
        }
        float rstd = 1.0f / sqrtf(sum_of_squares(t, x, p->cols) / (float)p->cols + p->epsilon);
        if (p->casting == LIGER_CAST_NONE) rstd = f32_round_to(t, rstd);
        scale_row(t, tw, p, x, row_of(p->y, r, element), rstd);
        if (p->rstd) p->rstd[r] = rstd;
    }
}

static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct rms_norm_forward_problem *p = argument;
    if (p->weight_dtype == LIGER_F32) LIGER_FOR_FLOAT(p->dtype, forward_rows(LIGER_T, LIGER_F32, p, begin, end))
    else LIGER_FOR_FLOAT(p->dtype, forward_rows(LIGER_T, LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(rms_norm_forward)(liger_context *context, const struct rms_norm_forward_problem *problem,
                                         liger_stream stream) {
    (void)stream;
    struct rms_norm_forward_problem p = *problem;
    const int64_t row_bytes = p.cols * (int64_t)liger_dtype_size(p.dtype);
    liger_parallel_for(context, p.rows, 1 + BYTES_PER_CHUNK / row_bytes, forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* m = dy · (weight + offset), the gradient of x·rstd. */
LIGER_TEMPLATE v_f32 m_of(liger_dtype t, liger_dtype tw, const struct rms_norm_backward_problem *p, const void *dy,
                          int64_t i, int n) {
    const v_f32 upstream = v_load_n(t, dy, i, n);
    return p->weight ? v_mul(upstream, scale_of(t, tw, p->weight, p->offset, false, i, n)) : upstream;
}

/* Σ m · x̂ of one row, with x̂ = x·rstd. */
LIGER_TEMPLATE float dot_row(liger_dtype t, liger_dtype tw, const struct rms_norm_backward_problem *p, const void *dy,
                             const void *x, v_f32 rstd) {
    v_f32 sum[2] = {v_zero(), v_zero()};
    int64_t i = 0;
    for (; i + 2 * V_LANES <= p->cols; i += 2 * V_LANES)
        for (int k = 0; k < 2; k++) {
            const int64_t at = i + k * V_LANES;
            sum[k] = v_fma(m_of(t, tw, p, dy, at, V_LANES), v_mul(v_load(t, x, at), rstd), sum[k]);
        }
    for (; i < p->cols; i += V_LANES) {
        const int n = p->cols - i < V_LANES ? (int)(p->cols - i) : V_LANES;
        sum[0] = v_fma(m_of(t, tw, p, dy, i, n), v_mul(v_load_n(t, x, i, n), rstd), sum[0]);
    }
    return v_sum(v_add(sum[0], sum[1]));
}

/* dx of one row, and its part of dweight: one pass, because dy and x are then read once from L1. dx is written as
 * rstd · (m - x̂ · mean(m·x̂)), whose parts are of the size of dy until the last product: rstd³ leaves the range of f32
 * for an x of 1e-14 or 1e15. */
LIGER_TEMPLATE void gradient_row(liger_dtype t, liger_dtype tw, const struct rms_norm_backward_problem *p,
                                 const void *dy, const void *x, const void *dsum, void *dx, float *dweight,
                                 float rstd) {
    const bool round = p->casting == LIGER_CAST_LLAMA && t != LIGER_F32;
    const v_f32 factor = v_set(rstd);
    v_f32 mean = v_zero();
    if (dx) mean = v_set(dot_row(t, tw, p, dy, x, factor) / (float)p->cols);
    V_FOR_EACH(i, n, p->cols, {
        const v_f32 normal = v_mul(v_load_n(t, x, i, n), factor);
        if (dweight) {
            const v_f32 rounded = round ? v_round_to(t, normal) : normal;
            const v_f32 sum = v_fma(v_load_n(t, dy, i, n), rounded, v_load_n(LIGER_F32, dweight, i, n));
            v_store_n(LIGER_F32, dweight, i, n, sum);
        }
        if (dx) {
            v_f32 gradient = v_mul(factor, v_fnma(mean, normal, m_of(t, tw, p, dy, i, n)));
            if (dsum) gradient = v_add(gradient, v_load_n(t, dsum, i, n));
            v_store_n(t, dx, i, n, gradient);
        }
    });
}

LIGER_TEMPLATE void backward_rows(liger_dtype t, liger_dtype tw, const struct rms_norm_backward_problem *p,
                                  int64_t begin, int64_t end, float *dweight) {
    const size_t element = liger_dtype_size(t);
    for (int64_t r = begin; r < end; r++)
        gradient_row(t, tw, p, row_of(p->dy, r, element), row_of(p->x, r, element),
                     p->dsum.data ? row_of(p->dsum, r, element) : NULL, p->dx.data ? row_of(p->dx, r, element) : NULL,
                     dweight, p->rstd[r]);
}

static int64_t rows_per_partial(const struct rms_norm_backward_problem *p) {
    return (p->rows + p->partials - 1) / p->partials;
}

static void backward_block(void *argument, int64_t block, int64_t end) {
    const struct rms_norm_backward_problem *p = argument;
    const int64_t per = rows_per_partial(p);
    for (; block < end; block++) {
        const int64_t first = block * per, last = first + per < p->rows ? first + per : p->rows;
        float *dweight = p->dweight ? p->workspace + block * p->cols : NULL;
        if (dweight) memset(dweight, 0, (size_t)p->cols * sizeof *dweight);
        if (p->weight_dtype == LIGER_F32)
            LIGER_FOR_FLOAT(p->dtype, backward_rows(LIGER_T, LIGER_F32, p, first, last, dweight))
        else LIGER_FOR_FLOAT(p->dtype, backward_rows(LIGER_T, LIGER_T, p, first, last, dweight))
    }
}

static void add_partials(void *argument, int64_t begin, int64_t end) {
    const struct rms_norm_backward_problem *p = argument;
    for (int64_t c = begin; c < end; c++) {
        float sum = 0;
        for (int64_t block = 0; block < p->partials; block++) sum += p->workspace[block * p->cols + c];
        f32_store(p->weight_dtype, p->dweight, c, sum);
    }
}

liger_status LIGER_CPU(rms_norm_backward)(liger_context *context, const struct rms_norm_backward_problem *problem,
                                          liger_stream stream) {
    (void)stream;
    struct rms_norm_backward_problem p = *problem;
    liger_parallel_for(context, p.partials, 1, backward_block, &p);
    if (p.dweight) liger_parallel_for(context, p.cols, 4096, add_partials, &p);
    return LIGER_OK;
}
