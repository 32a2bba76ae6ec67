/* row_selection_cpu.c - counted rows moved together on the CPU, compiled once per instruction set. Threads share out rows that
 * are copied; targets are few, and one thread looks at them. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/targets.h"
#include "liger/ops/row_selection/row_selection_problem.h"

/* ---- select ------------------------------------------------------------------------------------------------------- */

static liger_status count_targets(const struct row_select_problem *p, int64_t *count) {
    *count = 0;
    for (int64_t r = 0; r < p->rows; r++) {
        const int64_t y = index_load(p->target_dtype, p->target, r);
        if (y == p->ignore_index) continue;
        LIGER_TRY(target_check(p->op, r, y, p->vocab, p->ignore_index));
        ++*count;
    }
    LIGER_REQUIRE(*count <= p->most, LIGER_ERR_ARGUMENT,
                  "%s: valid_rows is %lld, but %lld of %lld rows have a target that is not ignored", p->op,
                  (long long)p->most, (long long)*count, (long long)p->rows);
    return LIGER_OK;
}

liger_status LIGER_CPU(row_select)(liger_context *context, const struct row_select_problem *p, liger_stream stream) {
    (void)context, (void)stream;
    int64_t count, place = 0;
    LIGER_TRY(count_targets(p, &count)); /* nothing is written on error */
    for (int64_t r = 0; r < p->rows; r++) {
        const bool ignored = index_load(p->target_dtype, p->target, r) == p->ignore_index;
        p->place_of[r] = ignored ? -1 : place;
        if (!ignored) p->row_of[place++] = r;
    }
    while (place < p->most) p->row_of[place++] = -1;
    *p->count = count;
    return LIGER_OK;
}

/* ---- gather and scatter ------------------------------------------------------------------------------------------- */

/* Of one task: some 64 KB, so that a short copy does not wait for threads. */
static int64_t rows_per_task(int64_t cols, liger_dtype dtype) {
    const int64_t rows = (64 << 10) / (cols * (int64_t)liger_dtype_size(dtype));
    return rows > 0 ? rows : 1;
}

/* Row `place` of x, or zeros if there is none. */
static void copy_row(void *y, const void *x, int64_t place, int64_t row_bytes, int64_t stride_bytes) {
    if (place < 0) memset(y, 0, (size_t)row_bytes);
    else memcpy(y, (const char *)x + place * stride_bytes, (size_t)row_bytes);
}

LIGER_TEMPLATE void round_row(liger_dtype t, void *y, const float *x, int64_t cols) {
    V_FOR_EACH(c, n, cols, v_store_n(t, y, c, n, v_load_n(LIGER_F32, x, c, n)));
}

static void scatter_chunk(void *argument, int64_t begin, int64_t end) {
    const struct row_scatter_problem *p = argument;
    const int64_t size = (int64_t)liger_dtype_size(p->y_dtype), row_bytes = p->cols * size;
    for (int64_t r = begin; r < end; r++) {
        const int64_t place = p->place_of ? p->place_of[r] : r;
        void *y = (char *)p->y + r * p->y_stride * size;
        if (place < 0 || p->x_dtype == p->y_dtype) copy_row(y, p->x, place, row_bytes, p->x_stride * size);
        else LIGER_FOR_FLOAT(p->y_dtype, round_row(LIGER_T, y, (const float *)p->x + place * p->x_stride, p->cols))
    }
}

static void scatter(liger_context *context, struct row_scatter_problem p) {
    if (p.cols > 0) liger_parallel_for(context, p.rows, rows_per_task(p.cols, p.y_dtype), scatter_chunk, &p);
}

liger_status LIGER_CPU(row_gather)(liger_context *context, const struct row_gather_problem *problem,
                                   liger_stream stream) {
    (void)stream;
    scatter(context, row_gather_as_scatter(problem));
    return LIGER_OK;
}

liger_status LIGER_CPU(row_scatter)(liger_context *context, const struct row_scatter_problem *problem,
                                    liger_stream stream) {
    (void)stream;
    scatter(context, *problem);
    return LIGER_OK;
}
