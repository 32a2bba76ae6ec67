/* modulated_rms_norm_cpu.c - modulated RMSNorm on the CPU, compiled once per instruction set.
 *
 * Two passes over a row that stays in L1/L2 between them: the sum, then the result. Backward walks groups in parts, or one
 * after the other, as norm_groups says; a part's two sums, and what a unit has for the weight, lie in the workspace. */
#include <math.h>

#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"
#include "liger/ops/modulated_rms_norm/modulated_rms_norm_problem.h"

enum { BYTES_PER_CHUNK = 32 << 10, COLUMNS_PER_CHUNK = 1024 };

/* n parameters of dtype t or f32, plus a number; or ones. */
LIGER_TEMPLATE v_f32 plus_at(liger_dtype t, liger_dtype dtype, const void *parameters, float plus, int64_t i, int n) {
    if (parameters == NULL) return v_set(1.0f);
    const v_f32 value = dtype == t ? v_load_n(t, parameters, i, n) : v_load_n(LIGER_F32, parameters, i, n);
    return v_add(value, v_set(plus));
}
LIGER_TEMPLATE void store_at(liger_dtype t, liger_dtype dtype, void *parameters, int64_t i, int n, v_f32 x) {
    if (dtype == t) v_store_n(t, parameters, i, n, x);
    else v_store_n(LIGER_F32, parameters, i, n, x);
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE float rstd_of(liger_dtype t, const struct modulated_rms_norm_forward_problem *p, const void *x) {
    v_f32 sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 4, p->cols, {
        const v_f32 value = v_load_n(t, x, i, n);
        sum[k] = v_fma(value, value, sum[k]);
    });
    const float squares = v_sum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
    const float rstd = 1.0f / sqrtf(squares / (float)p->cols + p->epsilon);
    return p->casting == MODULATED_NONE ? f32_round_to(t, rstd) : rstd;
}

LIGER_TEMPLATE void forward_row(liger_dtype t, const struct modulated_rms_norm_forward_problem *p, int64_t r) {
    const void *x = row_of(p->x, r, f_size(t));
    void *y = row_of(p->y, r, f_size(t));
    const bool llama = p->casting == MODULATED_LLAMA, gemma = p->casting == MODULATED_GEMMA;
    const bool round_weight = p->casting == MODULATED_NONE && p->weight_dtype == t;
    const int64_t group = r / p->group_rows * p->cols;
    const float rstd = rstd_of(t, p, x);
    V_FOR_EACH(i, n, p->cols, {
        v_f32 value = v_mul(v_load_n(t, x, i, n), v_set(rstd));
        v_f32 weight = plus_at(t, p->weight_dtype, p->weight, p->offset, i, n);
        if (llama) value = v_round_to(t, value);
        if (round_weight) weight = v_round_to(t, weight);
        value = v_mul(value, weight);
        if (gemma) value = v_round_to(t, value);
        value = v_mul(value, plus_at(t, p->scale_dtype, p->scale, 1.0f, group + i, n));
        if (p->shift) value = v_add(value, plus_at(t, p->shift_dtype, p->shift, 0.0f, group + i, n));
        v_store_n(t, y, i, n, value);
    });
    if (p->rstd) p->rstd[r] = rstd;
}

LIGER_TEMPLATE void forward_rows(liger_dtype t, const struct modulated_rms_norm_forward_problem *p, int64_t begin,
                                 int64_t end) {
    for (int64_t r = begin; r < end; r++) forward_row(t, p, r);
}

static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct modulated_rms_norm_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, forward_rows(LIGER_T, p, begin, end))
}

static int64_t rows_per_chunk(int64_t cols, liger_dtype t) {
    return 1 + BYTES_PER_CHUNK / (cols * (int64_t)liger_dtype_size(t));
}

liger_status LIGER_CPU(modulated_rms_norm_forward)(liger_context *context,
                                                   const struct modulated_rms_norm_forward_problem *problem,
                                                   liger_stream stream) {
    (void)stream;
    struct modulated_rms_norm_forward_problem p = *problem;
    liger_parallel_for(context, p.rows, rows_per_chunk(p.cols, p.dtype), forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward: rows --------------------------------------------------------------------------------------------- */

typedef struct modulated_rms_norm_backward_problem problem;

/* m = dy · (1 + scale) · (weight + offset), the gradient of x̂ = x·rstd. `group` is where the group's parameters begin. */
LIGER_TEMPLATE v_f32 m_of(liger_dtype t, const problem *p, int64_t group, v_f32 dy, int64_t i, int n) {
    const v_f32 scale = plus_at(t, p->scale_dtype, p->scale, 1.0f, group + i, n);
    return v_mul(dy, v_mul(scale, plus_at(t, p->weight_dtype, p->weight, p->offset, i, n)));
}

LIGER_TEMPLATE float mean_product(liger_dtype t, const problem *p, int64_t group, const void *dy, const void *x,
                                  v_f32 rstd) {
    v_f32 sum[2] = {v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 2, p->cols, {
        const v_f32 m = m_of(t, p, group, v_load_n(t, dy, i, n), i, n);
        sum[k] = v_fma(m, v_mul(v_load_n(t, x, i, n), rstd), sum[k]);
    });
    return v_sum(v_add(sum[0], sum[1])) / (float)p->cols;
}

/* A unit's sums over rows, each a row of the workspace; NULL: nobody asks. */
struct sums {
    float *products, *upstreams; /* Σ dy·x̂, Σ dy */
    float *normals;              /* Σ dy·RMSNorm(x) where that is rounded; else the products say it */
};

/* dx, and the row's part of the sums. */
LIGER_TEMPLATE void backward_row(liger_dtype t, const problem *p, int64_t r, const struct sums *sums) {
    const int64_t group = r / p->plan.group_rows * p->cols;
    const void *dy = row_of(p->dy, r, f_size(t)), *x = row_of(p->x, r, f_size(t));
    void *dx = p->dx.data ? row_of(p->dx, r, f_size(t)) : NULL;
    const bool round = p->casting == MODULATED_LLAMA;
    const v_f32 rstd = v_set(p->rstd[r]);
    const v_f32 mean = v_set(dx ? mean_product(t, p, group, dy, x, rstd) : 0.0f);
    V_FOR_EACH(i, n, p->cols, {
        const v_f32 up = v_load_n(t, dy, i, n);
        const v_f32 normal = v_mul(v_load_n(t, x, i, n), rstd);
        if (sums->products) {
            const v_f32 factor = round ? v_round_to(t, normal) : normal;
            v_store_n(LIGER_F32, sums->products, i, n, v_fma(up, factor, v_load_n(LIGER_F32, sums->products, i, n)));
            v_store_n(LIGER_F32, sums->upstreams, i, n, v_add(up, v_load_n(LIGER_F32, sums->upstreams, i, n)));
        }
        if (sums->normals) {
            const v_f32 weight = plus_at(t, p->weight_dtype, p->weight, p->offset, i, n);
            const v_f32 scaled = v_round_to(t, v_mul(normal, weight));
            v_store_n(LIGER_F32, sums->normals, i, n, v_fma(up, scaled, v_load_n(LIGER_F32, sums->normals, i, n)));
        }
        if (dx) v_store_n(t, dx, i, n, v_mul(rstd, v_fnma(mean, normal, m_of(t, p, group, up, i, n))));
    });
}

/* ---- backward: groups ------------------------------------------------------------------------------------------- */

/* A group's sums are complete in columns begin to end: its gradients, and its part in the weight's, added to `all`. */
LIGER_TEMPLATE void finish_group(liger_dtype t, const problem *p, int64_t group, int64_t begin, int64_t end,
                                 const struct sums *sums, float *all) {
    const int64_t at = group * p->cols;
    const bool none = p->casting == MODULATED_NONE, round_weight = none && p->weight_dtype == t;
    const float offset = none ? f32_round_to(t, p->offset) : p->offset; /* as forward has it */
    V_FOR_EACH(k, n, end - begin, {
        const int64_t i = begin + k;
        const v_f32 sum = v_load_n(LIGER_F32, sums->products, i, n);
        if (p->dshift) store_at(t, p->shift_dtype, p->dshift, at + i, n, v_load_n(LIGER_F32, sums->upstreams, i, n));
        if (p->dscale) {
            v_f32 weight = plus_at(t, p->weight_dtype, p->weight, offset, i, n);
            if (round_weight) weight = v_round_to(t, weight);
            store_at(t, p->scale_dtype, p->dscale, at + i, n,
                     sums->normals ? v_load_n(LIGER_F32, sums->normals, i, n) : v_mul(weight, sum));
        }
        const v_f32 scale = plus_at(t, p->scale_dtype, p->scale, 1.0f, at + i, n);
        v_store_n(LIGER_F32, all, i, n, v_fma(scale, sum, v_load_n(LIGER_F32, all, i, n)));
    });
}

static float *row_in(const problem *p, int which, int64_t unit) {
    return p->workspace ? p->workspace + (which * p->plan.units + unit) * p->cols : NULL;
}
static void clear_row(const problem *p, float *row) {
    if (row) memset(row, 0, (size_t)p->cols * sizeof *row);
}
static bool rounds_normals(const problem *p) { return p->casting == MODULATED_GEMMA && p->dscale; }
static struct sums sums_in(const problem *p, int64_t unit) {
    return (struct sums){row_in(p, 0, unit), row_in(p, 1, unit), rounds_normals(p) ? row_in(p, 3, unit) : NULL};
}

/* The rows of a part of a group; with one part it is all of the group. */
LIGER_TEMPLATE void backward_part(liger_dtype t, const problem *p, int64_t group, int64_t part, int64_t unit) {
    const struct norm_groups *plan = &p->plan;
    const int64_t first = group * plan->group_rows, begin = first + part * plan->part_rows;
    const int64_t after = first + plan->group_rows,
                  end = begin + plan->part_rows < after ? begin + plan->part_rows : after;
    const struct sums sums = sums_in(p, unit);
    clear_row(p, sums.products), clear_row(p, sums.upstreams), clear_row(p, sums.normals);
    for (int64_t r = begin; r < end; r++) backward_row(t, p, r, &sums);
    if (plan->parts == 1 && sums.products) finish_group(t, p, group, 0, p->cols, &sums, row_in(p, 2, unit));
}

static void backward_unit(void *argument, int64_t unit, int64_t end) {
    const problem *p = argument;
    for (; unit < end; unit++) {
        clear_row(p, row_in(p, 2, unit));
        if (p->plan.parts > 1)
            LIGER_FOR_FLOAT(p->dtype, backward_part(LIGER_T, p, unit / p->plan.parts, unit % p->plan.parts, unit))
        else
            for (int64_t group = unit; group < p->plan.groups; group += p->plan.units)
                LIGER_FOR_FLOAT(p->dtype, backward_part(LIGER_T, p, group, 0, unit))
    }
}

/* Columns of a chunk of what all units have, in order; the sums end in the rows of the first one. */
static void add_rows(const problem *p, int which, int64_t first, int64_t count, int64_t begin, int64_t end) {
    float *total = row_in(p, which, first);
    V_FOR_EACH(k, n, end - begin, {
        v_f32 sum = v_load_n(LIGER_F32, total, begin + k, n);
        for (int64_t unit = first + 1; unit < first + count; unit++)
            sum = v_add(sum, v_load_n(LIGER_F32, row_in(p, which, unit), begin + k, n));
        v_store_n(LIGER_F32, total, begin + k, n, sum);
    });
}

static void finish_columns(void *argument, int64_t begin, int64_t end) {
    const problem *p = argument;
    for (int64_t group = 0; p->plan.parts > 1 && group < p->plan.groups; group++) {
        const int64_t first = group * p->plan.parts;
        const struct sums sums = sums_in(p, first);
        for (int which = 0; which < 2; which++) add_rows(p, which, first, p->plan.parts, begin, end);
        if (sums.normals) add_rows(p, 3, first, p->plan.parts, begin, end);
        LIGER_FOR_FLOAT(p->dtype, finish_group(LIGER_T, p, group, begin, end, &sums, row_in(p, 2, 0)))
    }
    if (p->dweight == NULL) return;
    if (p->plan.parts == 1) add_rows(p, 2, 0, p->plan.units, begin, end);
    V_FOR_EACH(k, n, end - begin, {
        const v_f32 sum = v_load_n(LIGER_F32, row_in(p, 2, 0), begin + k, n);
        LIGER_FOR_FLOAT(p->weight_dtype, v_store_n(LIGER_T, p->dweight, begin + k, n, sum))
    });
}

/* Without rows the gradients of parameters are zeros, and there is nothing else. */
static void clear_all(const problem *p) {
    const size_t elements = (size_t)(p->plan.groups * p->cols);
    if (p->dweight) memset(p->dweight, 0, (size_t)p->cols * liger_dtype_size(p->weight_dtype));
    if (p->dscale) memset(p->dscale, 0, elements * liger_dtype_size(p->scale_dtype));
    if (p->dshift) memset(p->dshift, 0, elements * liger_dtype_size(p->shift_dtype));
}

liger_status LIGER_CPU(modulated_rms_norm_backward)(liger_context *context,
                                                    const struct modulated_rms_norm_backward_problem *given,
                                                    liger_stream stream) {
    (void)stream;
    problem p = *given;
    if (p.rows == 0) return clear_all(&p), LIGER_OK;
    liger_parallel_for(context, p.plan.units, 1, backward_unit, &p);
    if (p.workspace) liger_parallel_for(context, p.cols, COLUMNS_PER_CHUNK, finish_columns, &p);
    return LIGER_OK;
}
