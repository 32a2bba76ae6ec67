/* softmax_cpu.c - softmax on the CPU, compiled once per instruction set. A row of a few vectors stays in registers, one of a
 * block in L1, and a wider one is walked twice, the second time in L2. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/vocab_rows.h"
#include "liger/ops/softmax/softmax_problem.h"

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { FEW_VECTORS = 4 };

/* A row of so many vectors, a literal; the last one may be of fewer values. Lanes beyond them are as the largest value until the
 * sum: an exponential that underflows takes the processor as long as a hundred others. */
LIGER_TEMPLATE void forward_few(liger_dtype t, int vectors, int64_t cols, const void *x, void *y) {
    static const float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    v_f32 value[FEW_VECTORS], most = v_set(-FLT_MAX), sum = v_zero();
    const int64_t last = (int64_t)(vectors - 1) * V_LANES;
    const int left = (int)(cols - last);
    const v_mask there = v_less(v_load_f32(lane), v_set((float)left));
    for (int k = 0; k < vectors - 1; k++) {
        value[k] = v_load(t, x, (int64_t)k * V_LANES);
        most = v_max(value[k], most);
    }
    value[vectors - 1] = v_load_n(t, x, last, left);
    most = v_set(v_max_across(v_max(v_select(there, value[vectors - 1], most), most)));
    value[vectors - 1] = v_select(there, value[vectors - 1], most);
    for (int k = 0; k < vectors; k++) {
        value[k] = v_exp(v_sub(value[k], most));
        sum = v_add(sum, k < vectors - 1 ? value[k] : v_select(there, value[k], v_zero()));
    }
    const v_f32 share = v_set(1.0f / v_sum(sum));
    for (int k = 0; k < vectors - 1; k++) v_store(t, y, (int64_t)k * V_LANES, v_mul(value[k], share));
    v_store_n(t, y, last, left, v_mul(value[vectors - 1], share));
}

/* A row of one block: every exponential is taken once. */
LIGER_TEMPLATE void forward_block(liger_dtype t, int64_t cols, const void *x, void *y) {
    float block[VOCAB_BLOCK + V_LANES];
    const float largest = vocab_widen(t, x, 0, cols, false, 0.0f, block);
    const v_f32 most = v_set(largest);
    for (int64_t i = cols; i < cols + V_LANES; i++) block[i] = largest; /* as above */
    v_f32 sum[2] = {v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 2, cols, {
        const v_f32 value = v_exp(v_sub(v_load_f32(block + i), most));
        v_store_f32(block + i, value);
        sum[k] = v_add(sum[k], v_first(value, n));
    });
    const v_f32 share = v_set(1.0f / v_sum(v_add(sum[0], sum[1])));
    V_FOR_EACH(i, n, cols, v_store_n(t, y, i, n, v_mul(v_load_f32(block + i), share)));
}

LIGER_TEMPLATE void forward_row(liger_dtype t, int64_t cols, const void *x, void *y) {
    const struct softmax_state state = vocab_softmax(t, x, cols, 1.0f);
    const v_f32 max = v_set(state.max), share = v_set(1.0f / state.sum);
    V_FOR_EACH(i, n, cols, v_store_n(t, y, i, n, v_mul(v_exp(v_sub(v_load_n(t, x, i, n), max)), share)));
}

LIGER_TEMPLATE void forward_rows(liger_dtype t, const struct softmax_forward_problem *p, int64_t begin, int64_t end) {
    const size_t element = liger_dtype_size(t);
    const int64_t vectors = (p->cols + V_LANES - 1) / V_LANES;
#define ROWS(...)                                                                                                      \
    for (int64_t r = begin; r < end; r++) {                                                                            \
        const void *x = row_of(p->x, r, element);                                                                      \
        void *y = row_of(p->y, r, element);                                                                            \
        __VA_ARGS__;                                                                                                   \
    }
    if (vectors == 1) ROWS(forward_few(t, 1, p->cols, x, y))
    else if (vectors == 2) ROWS(forward_few(t, 2, p->cols, x, y))
    else if (vectors == 3) ROWS(forward_few(t, 3, p->cols, x, y))
    else if (vectors == FEW_VECTORS) ROWS(forward_few(t, FEW_VECTORS, p->cols, x, y))
    else if (p->cols <= VOCAB_BLOCK) ROWS(forward_block(t, p->cols, x, y))
    else ROWS(forward_row(t, p->cols, x, y))
#undef ROWS
}

static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct softmax_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, forward_rows(LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(softmax_forward)(liger_context *context, const struct softmax_forward_problem *problem,
                                        liger_stream stream) {
    (void)stream;
    struct softmax_forward_problem p = *problem;
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.cols, p.dtype), forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE void backward_row(liger_dtype t, int64_t cols, const void *dy, const void *y, void *dx) {
    v_f32 sums[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 4, cols, {
        const v_f32 term = v_mul(v_load_n(t, y, i, n), v_load_n(t, dy, i, n));
        sums[k] = v_add(sums[k], v_first(term, n));
    });
    const v_f32 sum = v_set(v_sum(v_add(v_add(sums[0], sums[1]), v_add(sums[2], sums[3]))));
    V_FOR_EACH(i, n, cols, v_store_n(t, dx, i, n, v_mul(v_load_n(t, y, i, n), v_sub(v_load_n(t, dy, i, n), sum))));
}

LIGER_TEMPLATE void backward_rows(liger_dtype t, const struct softmax_backward_problem *p, int64_t begin, int64_t end) {
    const size_t element = liger_dtype_size(t);
    for (int64_t r = begin; r < end; r++)
        backward_row(t, p->cols, row_of(p->dy, r, element), row_of(p->y, r, element), row_of(p->dx, r, element));
}

static void backward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct softmax_backward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, backward_rows(LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(softmax_backward)(liger_context *context, const struct softmax_backward_problem *problem,
                                         liger_stream stream) {
    (void)stream;
    struct softmax_backward_problem p = *problem;
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.cols, p.dtype), backward_chunk, &p);
    return LIGER_OK;
}
