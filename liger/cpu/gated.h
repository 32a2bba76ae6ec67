/* gated.h - the frame of a gated activation's kernels: y = activation(gate) · up, and its gradients.
 *
 * A template: a room defines the following and includes this file, which makes its two kernels of them.
 *
 *   #define GATED swiglu                                  problems swiglu_forward_problem, swiglu_backward_problem
 *   forward_element(t, ta, p, gate, up, y)                y from gate and up; ta is the activation's dtype
 *   backward_element(t, p, dy, gate, up, dgate, dup)      both gradients
 *
 * Elements are given two vectors at a time, so that the steps of their functions can alternate; t and ta are literals. The
 * work is cut into pieces of a row, small enough for the threads and large enough to be worth a call. All inputs of a vector
 * are read before an output is written, because outputs may be inputs. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/pieces.h"

#define GATED_JOIN2(op, rest) op##_##rest
#define GATED_JOIN(op, rest) GATED_JOIN2(op, rest)
#define GATED_NAME(rest) GATED_JOIN(GATED, rest)

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* The problem is copied: no store can then change its numbers, which stay in registers. */
LIGER_TEMPLATE void forward_piece(liger_dtype t, liger_dtype ta, struct GATED_NAME(forward_problem) p, const void *gate,
                                  const void *up, void *y, int64_t count) {
    const bool stream = streams(t, p.rows, p.cols, 3) && aligned(y);
    V_FOR_EACH_TWO(i, n, count, {
        v_f32 g[2], u[2], y2[2];
        v_load_two(t, gate, i, n, g);
        v_load_two(t, up, i, n, u);
        forward_element(t, ta, &p, g, u, y2);
        put(t, stream, y, i, n, y2);
    });
}

LIGER_TEMPLATE void forward_pieces(liger_dtype t, liger_dtype ta, const struct GATED_NAME(forward_problem) * p,
                                   int64_t begin, int64_t end) {
    FOR_EACH_PIECE(
        p, begin, end,
        forward_piece(t, ta, *p, at(p->gate, row, first, t), at(p->up, row, first, t), at(p->y, row, first, t), count))
}

static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct GATED_NAME(forward_problem) *p = argument;
    if (p->activation_dtype == p->dtype) LIGER_FOR_FLOAT(p->dtype, forward_pieces(LIGER_T, LIGER_T, p, begin, end))
    else LIGER_FOR_FLOAT(p->dtype, forward_pieces(LIGER_T, p->activation_dtype, p, begin, end))
    v_stream_end();
}

liger_status LIGER_CPU(GATED_NAME(forward))(liger_context *context, const struct GATED_NAME(forward_problem) * problem,
                                            liger_stream stream) {
    (void)stream;
    struct GATED_NAME(forward_problem) p = *problem;
    liger_parallel_for(context, pieces(p.rows, p.cols), grain(p.cols), forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE void backward_piece(liger_dtype t, struct GATED_NAME(backward_problem) p, const void *dy,
                                   const void *gate, const void *up, void *dgate, void *dup, int64_t count) {
    const bool stream = streams(t, p.rows, p.cols, 5) && aligned(dgate) && aligned(dup);
    V_FOR_EACH_TWO(i, n, count, {
        v_f32 d[2], g[2], u[2], dg[2], du[2];
        v_load_two(t, dy, i, n, d);
        v_load_two(t, gate, i, n, g);
        v_load_two(t, up, i, n, u);
        backward_element(t, &p, d, g, u, dg, du);
        if (dup) put(t, stream, dup, i, n, du);
        if (dgate) put(t, stream, dgate, i, n, dg);
    });
}

LIGER_TEMPLATE void backward_pieces(liger_dtype t, const struct GATED_NAME(backward_problem) * p, int64_t begin,
                                    int64_t end) {
    FOR_EACH_PIECE(p, begin, end,
                   backward_piece(t, *p, at(p->dy, row, first, t), at(p->gate, row, first, t), at(p->up, row, first, t),
                                  at(p->dgate, row, first, t), at(p->dup, row, first, t), count))
}

static void backward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct GATED_NAME(backward_problem) *p = argument;
    LIGER_FOR_FLOAT(p->dtype, backward_pieces(LIGER_T, p, begin, end))
    v_stream_end();
}

liger_status LIGER_CPU(GATED_NAME(backward))(liger_context *context,
                                             const struct GATED_NAME(backward_problem) * problem, liger_stream stream) {
    (void)stream;
    struct GATED_NAME(backward_problem) p = *problem;
    liger_parallel_for(context, pieces(p.rows, p.cols), grain(p.cols), backward_chunk, &p);
    return LIGER_OK;
}
