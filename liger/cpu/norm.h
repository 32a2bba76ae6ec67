/* norm.h - the frame of a normalisation's kernels: rows forward, rows backward, sums over rows for the parameters.
 *
 * A template: a room defines the following and includes this file, which makes its two kernels of them.
 *
 *   #define NORM rms_norm                       problems rms_norm_forward_problem, rms_norm_backward_problem
 *   #define NORM_SUMS(p) (p)->dweight           the outputs that are sums over rows, in the order of the workspace
 *   #define NORM_TOTALS(p) {(p)->to, dtype, i}  if any: elements that are sums over everything
 *   forward_row(t, tw, p, r)                    all of row r
 *   backward_row(t, tw, p, r, partial)          dx of row r; its parts are added to the rows partial[k], NULL: not wanted,
 *                                               and behind them to the single elements of the totals
 *
 * t and tw, the dtypes of activations and parameters, are literals. The sums are made of one partial row per fixed block of
 * rows, and the partials are added in order: the same bits for any number of threads. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"

#define NORM_JOIN2(op, rest) op##_##rest
#define NORM_JOIN(op, rest) NORM_JOIN2(op, rest)
#define NORM_NAME(rest) NORM_JOIN(NORM, rest)

/* Below this many bytes a second thread costs more than it brings. */
enum { BYTES_PER_CHUNK = 32 << 10 };

/* ---- forward ---------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE void forward_rows(liger_dtype t, liger_dtype tw, const struct NORM_NAME(forward_problem) * p,
                                 int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) forward_row(t, tw, p, r);
}

static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct NORM_NAME(forward_problem) *p = argument;
    if (p->weight_dtype == LIGER_F32) LIGER_FOR_FLOAT(p->dtype, forward_rows(LIGER_T, LIGER_F32, p, begin, end))
    else LIGER_FOR_FLOAT(p->dtype, forward_rows(LIGER_T, LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(NORM_NAME(forward))(liger_context *context, const struct NORM_NAME(forward_problem) * problem,
                                           liger_stream stream) {
    (void)stream;
    struct NORM_NAME(forward_problem) p = *problem;
    const int64_t row_bytes = p.cols * (int64_t)liger_dtype_size(p.dtype);
    liger_parallel_for(context, p.rows, 1 + BYTES_PER_CHUNK / row_bytes, forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE void backward_rows(liger_dtype t, liger_dtype tw, const struct NORM_NAME(backward_problem) * p,
                                  int64_t begin, int64_t end, float *const *partial) {
    for (int64_t r = begin; r < end; r++) backward_row(t, tw, p, r, partial);
}

#ifndef NORM_TOTALS
#define NORM_TOTALS(p)
#endif

/* Element `at` of an output. */
struct norm_total {
    void *to;
    liger_dtype dtype;
    int64_t at;
};

/* The workspace is [sums, partials, cols], then [totals, partials]. A list may be empty, an array in C may not: the first
 * element of each stands for nothing. */
static void backward_block(void *argument, int64_t block, int64_t end) {
    const struct NORM_NAME(backward_problem) *p = argument;
    const int64_t per = (p->rows + p->partials - 1) / p->partials;
    void *const sum[] = {NULL, NORM_SUMS(p)};
    const struct norm_total total[] = {{NULL, LIGER_F32, 0}, NORM_TOTALS(p)};
    enum { SUMS = sizeof sum / sizeof sum[0] - 1, TOTALS = sizeof total / sizeof total[0] - 1 };
    for (; block < end; block++) {
        const int64_t first = block * per, last = first + per < p->rows ? first + per : p->rows;
        float *partial[SUMS + TOTALS + 1];
        for (int k = 0; k < SUMS; k++) {
            partial[k] = sum[1 + k] ? p->workspace + (k * p->partials + block) * p->cols : NULL;
            if (partial[k]) memset(partial[k], 0, (size_t)p->cols * sizeof *partial[k]);
        }
        for (int k = 0; k < TOTALS; k++) {
            partial[SUMS + k] = total[1 + k].to ? p->workspace + (SUMS * p->cols + k) * p->partials + block : NULL;
            if (partial[SUMS + k]) *partial[SUMS + k] = 0;
        }
        if (p->weight_dtype == LIGER_F32)
            LIGER_FOR_FLOAT(p->dtype, backward_rows(LIGER_T, LIGER_F32, p, first, last, partial))
        else LIGER_FOR_FLOAT(p->dtype, backward_rows(LIGER_T, LIGER_T, p, first, last, partial))
    }
}

static void add_partials(void *argument, int64_t begin, int64_t end) {
    const struct NORM_NAME(backward_problem) *p = argument;
    void *const sum[] = {NULL, NORM_SUMS(p)};
    for (int64_t k = 0; k < (int64_t)(sizeof sum / sizeof sum[0]) - 1; k++) {
        if (sum[1 + k] == NULL) continue;
        V_FOR_EACH(c, n, end - begin, {
            v_f32 total = v_zero();
            for (int64_t block = 0; block < p->partials; block++)
                total =
                    v_add(total, v_load_n(LIGER_F32, p->workspace, (k * p->partials + block) * p->cols + begin + c, n));
            LIGER_FOR_FLOAT(p->weight_dtype, v_store_n(LIGER_T, sum[1 + k], begin + c, n, total))
        });
    }
}

static void add_totals(const struct NORM_NAME(backward_problem) * p) {
    void *const sum[] = {NULL, NORM_SUMS(p)};
    const struct norm_total total[] = {{NULL, LIGER_F32, 0}, NORM_TOTALS(p)};
    enum { SUMS = sizeof sum / sizeof sum[0] - 1, TOTALS = sizeof total / sizeof total[0] - 1 };
    for (int k = 0; k < TOTALS; k++) {
        float all = 0;
        if (total[1 + k].to == NULL) continue;
        for (int64_t block = 0; block < p->partials; block++)
            all += p->workspace[(SUMS * p->cols + k) * p->partials + block];
        f32_store(total[1 + k].dtype, total[1 + k].to, total[1 + k].at, all);
    }
}

liger_status LIGER_CPU(NORM_NAME(backward))(liger_context *context, const struct NORM_NAME(backward_problem) * problem,
                                            liger_stream stream) {
    (void)stream;
    struct NORM_NAME(backward_problem) p = *problem;
    liger_parallel_for(context, p.partials, 1, backward_block, &p);
    liger_parallel_for(context, p.cols, 4096, add_partials, &p);
    add_totals(&p);
    return LIGER_OK;
}
