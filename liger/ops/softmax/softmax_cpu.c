/* softmax_cpu.c - softmax on the CPU, compiled once per instruction set: two walks over a row, the second in L2. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/vocab_rows.h"
#include "liger/ops/softmax/softmax_problem.h"

/* ---- forward ---------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE void forward_row(liger_dtype t, int64_t cols, const void *x, void *y) {
    float block[VOCAB_BLOCK + V_LANES];
    struct softmax_state state = softmax_empty();
    for (int64_t begin = 0; begin < cols; begin += VOCAB_BLOCK) {
        const int64_t count = vocab_block(cols, begin);
        const float most = vocab_widen(t, x, begin, count, false, 0.0f, block);
        state = softmax_push(state, block, (count + V_LANES - 1) / V_LANES * V_LANES, most);
    }
    const v_f32 max = v_set(state.max), share = v_set(1.0f / state.sum);
    V_FOR_EACH(i, n, cols, v_store_n(t, y, i, n, v_mul(v_exp(v_sub(v_load_n(t, x, i, n), max)), share)));
}

LIGER_TEMPLATE void forward_rows(liger_dtype t, const struct softmax_forward_problem *p, int64_t begin, int64_t end) {
    const size_t element = liger_dtype_size(t);
    for (int64_t r = begin; r < end; r++) forward_row(t, p->cols, row_of(p->x, r, element), row_of(p->y, r, element));
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
