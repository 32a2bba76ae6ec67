/* swiglu_cpu.c - SwiGLU on the CPU, compiled once per instruction set.
 *
 * Elements are independent: the work is cut into pieces of a row, small enough for the threads and large enough to be
 * worth a call. All inputs of a vector are read before an output is written, because outputs may be inputs. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/vec_math.h"
#include "liger/ops/swiglu/swiglu_problem.h"

/* Elements of one piece: 32 KiB or more per tensor, below which a second thread costs more than it brings. */
enum { PIECE = 16384 };

/* Calls body(row, first column, count) for each piece of a chunk. */
#define FOR_EACH_PIECE(p, begin, end, ...)                                                                             \
    for (int64_t piece = (begin); piece < (end); piece++) {                                                            \
        const int64_t pieces_per_row = ((p)->cols + PIECE - 1) / PIECE;                                                \
        const int64_t row = piece / pieces_per_row, first = piece % pieces_per_row * PIECE;                            \
        const int64_t count = (p)->cols - first < PIECE ? (p)->cols - first : PIECE;                                   \
        __VA_ARGS__;                                                                                                   \
    }

static int64_t pieces(int64_t rows, int64_t cols) { return rows * ((cols + PIECE - 1) / PIECE); }
/* Short rows are pieces of their own: take several at a time. */
static int64_t grain(int64_t cols) { return cols < PIECE ? 1 + PIECE / cols : 1; }

static void *at(liger_rows rows, int64_t row, int64_t col, liger_dtype t) {
    const size_t element = liger_dtype_size(t);
    return rows.data ? (char *)row_of(rows, row, element) + col * (int64_t)element : NULL;
}

/* Tensors of a call that are larger together than the caches of today are gone from them when the call is over: their
 * outputs are then written past the caches, which saves reading them first (1.4 ms of 5 at 2048 x 2816 in f32). */
enum { STREAM_BYTES = 64 << 20 };

static bool streams(liger_dtype t, int64_t rows, int64_t cols, int64_t tensors) {
    return tensors * rows * cols * (int64_t)liger_dtype_size(t) > STREAM_BYTES;
}
static bool aligned(const void *p) { return (uintptr_t)p % 64 == 0; }

LIGER_TEMPLATE void put(liger_dtype t, bool stream, void *p, int64_t i, int n, const v_f32 x[2]) {
    if (stream) v_stream_two(t, p, i, n, x);
    else v_store_two(t, p, i, n, x);
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE void forward_piece(liger_dtype t, liger_dtype ta, const struct swiglu_forward_problem *p,
                                  const void *gate, const void *up, void *y, int64_t count) {
    const bool stream = streams(t, p->rows, p->cols, 3) && aligned(y);
    const v_f32 one = v_set(1.0f), gate_multiplier = v_set(p->gate_multiplier);
    const v_f32 down_multiplier = v_set(p->down_multiplier);
    const bool scales = p->down_multiplier != 1.0f;
    V_FOR_EACH_TWO(i, n, count, {
        v_f32 g[2], u[2], y2[2];
        v_load_two(t, gate, i, n, g);
        v_load_two(t, up, i, n, u);
        for (int j = 0; j < 2; j++) {
            g[j] = v_mul(g[j], gate_multiplier);
            y2[j] = v_sub(v_zero(), g[j]);
        }
        v_exp_each(2, y2);
        for (int j = 0; j < 2; j++) {
            const v_f32 silu = v_div(g[j], v_add(one, y2[j]));
            y2[j] = v_mul(v_round_to(ta, silu), u[j]);
            if (scales) y2[j] = v_mul(v_round_to(t, y2[j]), down_multiplier);
        }
        put(t, stream, y, i, n, y2);
    });
}

LIGER_TEMPLATE void forward_pieces(liger_dtype t, liger_dtype ta, const struct swiglu_forward_problem *p, int64_t begin,
                                   int64_t end) {
    FOR_EACH_PIECE(
        p, begin, end,
        forward_piece(t, ta, p, at(p->gate, row, first, t), at(p->up, row, first, t), at(p->y, row, first, t), count))
}

static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct swiglu_forward_problem *p = argument;
    if (p->activation_dtype == p->dtype) LIGER_FOR_FLOAT(p->dtype, forward_pieces(LIGER_T, LIGER_T, p, begin, end))
    else LIGER_FOR_FLOAT(p->dtype, forward_pieces(LIGER_T, p->activation_dtype, p, begin, end))
    v_stream_end();
}

liger_status LIGER_CPU(swiglu_forward)(liger_context *context, const struct swiglu_forward_problem *problem,
                                       liger_stream stream) {
    (void)stream;
    struct swiglu_forward_problem p = *problem;
    liger_parallel_for(context, pieces(p.rows, p.cols), grain(p.cols), forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE void backward_piece(liger_dtype t, const struct swiglu_backward_problem *p, const void *dy,
                                   const void *gate, const void *up, void *dgate, void *dup, int64_t count) {
    const bool stream = streams(t, p->rows, p->cols, 5) && aligned(dgate) && aligned(dup);
    const v_f32 one = v_set(1.0f), gate_multiplier = v_set(p->gate_multiplier);
    const v_f32 down_multiplier = v_set(p->down_multiplier);
    V_FOR_EACH_TWO(i, n, count, {
        v_f32 dc[2], g[2], u[2], s[2];
        v_load_two(t, dy, i, n, dc);
        v_load_two(t, gate, i, n, g);
        v_load_two(t, up, i, n, u);
        for (int j = 0; j < 2; j++) {
            g[j] = v_mul(g[j], gate_multiplier);
            s[j] = v_sub(v_zero(), g[j]);
        }
        v_exp_each(2, s);
        for (int j = 0; j < 2; j++) {
            s[j] = v_div(one, v_add(one, s[j]));
            const v_f32 silu = v_mul(g[j], s[j]), slope = v_fma(silu, v_sub(one, s[j]), s[j]);
            dc[j] = v_mul(dc[j], down_multiplier);
            u[j] = v_mul(v_mul(v_mul(dc[j], u[j]), slope), gate_multiplier);
            dc[j] = v_mul(dc[j], silu);
        }
        if (dup) put(t, stream, dup, i, n, dc);
        if (dgate) put(t, stream, dgate, i, n, u);
    });
}

LIGER_TEMPLATE void backward_pieces(liger_dtype t, const struct swiglu_backward_problem *p, int64_t begin,
                                    int64_t end) {
    FOR_EACH_PIECE(p, begin, end,
                   backward_piece(t, p, at(p->dy, row, first, t), at(p->gate, row, first, t), at(p->up, row, first, t),
                                  at(p->dgate, row, first, t), at(p->dup, row, first, t), count))
}

static void backward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct swiglu_backward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, backward_pieces(LIGER_T, p, begin, end))
    v_stream_end();
}

liger_status LIGER_CPU(swiglu_backward)(liger_context *context, const struct swiglu_backward_problem *problem,
                                        liger_stream stream) {
    (void)stream;
    struct swiglu_backward_problem p = *problem;
    liger_parallel_for(context, pieces(p.rows, p.cols), grain(p.cols), backward_chunk, &p);
    return LIGER_OK;
}
