/* relu_squared_cpu.c - max(x, 0)² on the CPU, compiled once per instruction set: one pass at the speed of memory. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/pieces.h"
#include "liger/ops/relu_squared/relu_squared_problem.h"

/* In this order NaN passes through. */
LIGER_TEMPLATE v_f32 relu(v_f32 x) { return v_max(v_zero(), x); }

/* ---- forward ---------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE void forward_piece(liger_dtype t, bool stream, const void *x, void *y, int64_t count) {
    V_FOR_EACH_TWO(i, n, count, {
        v_f32 value[2];
        v_load_two(t, x, i, n, value);
        for (int j = 0; j < 2; j++) value[j] = v_mul(relu(value[j]), relu(value[j]));
        put(t, stream && aligned(y), y, i, n, value);
    });
}

LIGER_TEMPLATE void forward_pieces(liger_dtype t, const struct relu_squared_forward_problem *p, int64_t begin,
                                   int64_t end) {
    const bool stream = streams(t, p->rows, p->cols, 2);
    FOR_EACH_PIECE(p, begin, end, forward_piece(t, stream, at(p->x, row, first, t), at(p->y, row, first, t), count))
}

static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct relu_squared_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, forward_pieces(LIGER_T, p, begin, end))
    v_stream_end();
}

liger_status LIGER_CPU(relu_squared_forward)(liger_context *context, const struct relu_squared_forward_problem *problem,
                                             liger_stream stream) {
    (void)stream;
    struct relu_squared_forward_problem p = *problem;
    liger_parallel_for(context, pieces(p.rows, p.cols), grain(p.cols), forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* 2 · x · dy. The factor that has room for it takes the 2: then only the product is rounded, and nothing overflows before it. */
LIGER_TEMPLATE v_f32 twice_product(v_f32 x, v_f32 dy) {
    const v_mask small = v_less(x, v_set(1.0f));
    return v_mul(v_select(small, v_add(x, x), x), v_select(small, dy, v_add(dy, dy)));
}

LIGER_TEMPLATE void backward_piece(liger_dtype t, bool stream, const void *dy, const void *x, void *dx, int64_t count) {
    V_FOR_EACH_TWO(i, n, count, {
        v_f32 value[2], up[2];
        v_load_two(t, x, i, n, value);
        v_load_two(t, dy, i, n, up);
        for (int j = 0; j < 2; j++) value[j] = twice_product(relu(value[j]), up[j]);
        put(t, stream && aligned(dx), dx, i, n, value);
    });
}

LIGER_TEMPLATE void backward_pieces(liger_dtype t, const struct relu_squared_backward_problem *p, int64_t begin,
                                    int64_t end) {
    const bool stream = streams(t, p->rows, p->cols, 3);
    FOR_EACH_PIECE(
        p, begin, end,
        backward_piece(t, stream, at(p->dy, row, first, t), at(p->x, row, first, t), at(p->dx, row, first, t), count))
}

static void backward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct relu_squared_backward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, backward_pieces(LIGER_T, p, begin, end))
    v_stream_end();
}

liger_status LIGER_CPU(relu_squared_backward)(liger_context *context,
                                              const struct relu_squared_backward_problem *problem,
                                              liger_stream stream) {
    (void)stream;
    struct relu_squared_backward_problem p = *problem;
    liger_parallel_for(context, pieces(p.rows, p.cols), grain(p.cols), backward_chunk, &p);
    return LIGER_OK;
}
