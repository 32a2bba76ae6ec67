/* divergence.h - the frame of a divergence's kernel on the CPU: two matrices are read, and what is asked for is written, in one
 * pass at the speed of memory.
 *
 * A template: a room defines the following and includes this file, which makes its kernel of them.
 *
 *   #define DIVERGENCE kl_div                  the problem kl_div_problem, whose member `d` is the divergence_problem
 *   divergence_terms(p, x, y, value, slope)    of two vectors, so that the steps of functions can alternate; of two zeros,
 *                                              which fill the last vector of a row, the value is 0
 *
 * Threads share out the tiles that the loss is summed in. */
#include "liger/core/divergences.h"
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/pieces.h"

#define DIVERGENCE_JOIN2(op, rest) op##_##rest
#define DIVERGENCE_JOIN(op, rest) DIVERGENCE_JOIN2(op, rest)
#define DIVERGENCE_PROBLEM struct DIVERGENCE_JOIN(DIVERGENCE, problem)

/* Two tiles are 32 KiB or more of each tensor, below which a second thread costs more than it brings. */
enum { TILES_OF_A_TASK = 2 };

/* What v_load_two may do, but with every value where it stands: for tensors of several dtypes side by side. */
LIGER_TEMPLATE void get(bool in_order, liger_dtype t, const void *p, int64_t i, int n, v_f32 x[2]) {
    if (!in_order) {
        v_load_two(t, p, i, n, x);
        return;
    }
    x[0] = v_load_n(t, p, i, n < V_LANES ? n : V_LANES);
    x[1] = n > V_LANES ? v_load_n(t, p, i + V_LANES, n - V_LANES) : v_zero();
}
LIGER_TEMPLATE void put_in_order(liger_dtype t, void *p, int64_t i, int n, const v_f32 x[2]) {
    v_store_n(t, p, i, n < V_LANES ? n : V_LANES, x[0]);
    if (n > V_LANES) v_store_n(t, p, i + V_LANES, n - V_LANES, x[1]);
}

/* The part of a row that is in a tile. */
struct tile_row {
    const void *x, *y;
    const float *upstream; /* one for each element; or NULL */
    float *loss;
    void *dx;
    float share; /* with the upstream, if that is one number */
    bool stream;
};

/* Returns the sum of values. The problem is copied: no store can then change its numbers, which stay in registers. */
LIGER_TEMPLATE float do_row(liger_dtype t, liger_dtype ty, bool unreduced, DIVERGENCE_PROBLEM p, struct tile_row row,
                            int64_t count) {
    const bool in_order = t == LIGER_BF16 && (ty != LIGER_BF16 || unreduced);
    const v_f32 share = v_set(row.share);
    v_f32 sum[2] = {v_zero(), v_zero()};
    V_FOR_EACH_TWO(i, n, count, {
        v_f32 x[2], y[2], value[2], slope[2];
        get(in_order, t, row.x, i, n, x);
        get(in_order, ty, row.y, i, n, y);
        divergence_terms(&p, x, y, value, slope);
        if (unreduced) {
            if (row.loss) put_in_order(LIGER_F32, row.loss, i, n, value);
            if (row.upstream) {
                v_f32 up[2];
                get(true, LIGER_F32, row.upstream, i, n, up);
                for (int j = 0; j < 2; j++) slope[j] = v_mul(slope[j], up[j]);
            }
        }
        for (int j = 0; j < 2; j++) sum[j] = v_add(sum[j], value[j]);
        for (int j = 0; j < 2; j++) slope[j] = v_mul(slope[j], share);
        if (row.dx) {
            if (in_order) put_in_order(t, row.dx, i, n, slope);
            else put(t, row.stream, row.dx, i, n, slope);
        }
    });
    return v_sum(v_add(sum[0], sum[1]));
}

LIGER_TEMPLATE void fill_zero(liger_dtype t, void *to, int64_t count) {
    if (to) memset(to, 0, (size_t)count * f_size(t));
}

LIGER_TEMPLATE float do_tile(liger_dtype t, liger_dtype ty, const DIVERGENCE_PROBLEM *p, int64_t tile, float share) {
    const struct divergence_problem *d = &p->d;
    const int64_t first = tile % d->tiles.across * DIVERGENCE_TILE, begin = tile / d->tiles.across * d->tiles.rows;
    const int64_t end = begin + d->tiles.rows < d->rows ? begin + d->tiles.rows : d->rows;
    const int64_t count = d->cols - first < DIVERGENCE_TILE ? d->cols - first : DIVERGENCE_TILE;
    const bool stream = streams(t, d->rows, d->cols, 3), unreduced = divergence_is_unreduced(d);
    float sum = 0.0f;
    for (int64_t r = begin; r < end; r++) {
        struct tile_row row = {.loss = at(d->loss, r, first, LIGER_F32), .dx = at(d->dx, r, first, t), .share = share};
        if (d->labels && index_load(d->label_dtype, d->labels, r) == d->ignore_index) {
            fill_zero(LIGER_F32, row.loss, count);
            fill_zero(t, row.dx, count);
            continue;
        }
        row.x = at(d->x, r, first, t);
        row.y = at(d->y, r, first, ty);
        row.stream = stream && aligned(row.dx);
        if (d->upstream.data) {
            const float *up = at(d->upstream, r, d->upstream_step ? first : 0, LIGER_F32);
            if (d->upstream_step) row.upstream = up;
            else row.share *= *up;
        }
        sum += unreduced ? do_row(t, ty, true, *p, row, count) : do_row(t, ty, false, *p, row, count);
    }
    return sum;
}

LIGER_TEMPLATE void do_tiles(liger_dtype t, liger_dtype ty, const DIVERGENCE_PROBLEM *p, int64_t begin, int64_t end) {
    const float share = divergence_share(&p->d);
    for (int64_t tile = begin; tile < end; tile++) p->d.partials[tile] = do_tile(t, ty, p, tile, share);
}

static void tiles_chunk(void *argument, int64_t begin, int64_t end) {
    const DIVERGENCE_PROBLEM *p = argument;
    if (p->d.y_dtype == p->d.dtype) LIGER_FOR_FLOAT(p->d.dtype, do_tiles(LIGER_T, LIGER_T, p, begin, end))
    else LIGER_FOR_FLOAT(p->d.dtype, do_tiles(LIGER_T, LIGER_F32, p, begin, end))
    v_stream_end();
}

liger_status LIGER_CPU(DIVERGENCE)(liger_context *context, const DIVERGENCE_PROBLEM *problem, liger_stream stream) {
    (void)stream;
    DIVERGENCE_PROBLEM p = *problem;
    liger_parallel_for(context, p.d.tiles.count, TILES_OF_A_TASK, tiles_chunk, &p);
    if (p.d.total == NULL) return LIGER_OK;
    double total = 0;
    for (int64_t i = 0; i < p.d.tiles.count; i++) total += (double)p.d.partials[i];
    f32_store(p.d.loss_dtype, p.d.total, 0, (float)(total * (double)divergence_share(&p.d)));
    return LIGER_OK;
}
