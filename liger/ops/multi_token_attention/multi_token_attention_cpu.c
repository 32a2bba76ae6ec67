/* multi_token_attention_cpu.c - multi-token attention on the CPU, compiled once per instruction set.
 *
 * Tiles: MTA_ROWS rows of an output plane, up to TILE_COLS columns at a time. What a tile sees of an input plane, its window, is
 * made in f32 with its zeros around it, in L2, and multiplied by all taps from there: BLOCK rows of outputs in registers, so
 * that a vector of inputs, loaded once for each column of the taps, serves BLOCK of their rows. Tiles beyond the diagonal are
 * zeros. 81 multiplications for an output of 9 x 9 taps: an exponential for each of the window's elements, 1.3 for an output,
 * is little beside them, and P is not kept. Where there is a stride, or a window is larger than WINDOW floats, place by place. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/scratch.h"
#include "liger/cpu/simplex.h"
#include "liger/cpu/vocab_rows.h"
#include "liger/ops/multi_token_attention/multi_token_attention_problem.h"

enum { TILE_COLS = 512, BLOCK = 4, VECTORS = V_LANES == 16 ? 4 : 2, STEP = VECTORS * V_LANES };
enum {
    SUM_TAPS = 3,
    SUM_ROWS = 8,
    SUM_COLS = 256
}; /* of dweight: 3 x 3 sums in registers, over a part that L1 holds */
enum { WINDOW = 512 << 10 };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t between(int64_t x, int64_t low, int64_t high) { return most(low, least(x, high)); }
static int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
static void *offset(const void *x, liger_dtype t, int64_t i) {
    return (char *)(uintptr_t)x + i * (int64_t)liger_dtype_size(t);
}

/* ---- what is convolved ------------------------------------------------------------------------------------------ */

/* Planes of P, made from scores and statistics, or of values that are taken as they are, up to the diagonal. */
struct source {
    const void *values;
    const float *statistics; /* NULL: as they are */
    int64_t size;
    bool sparse;
};

LIGER_TEMPLATE v_f32 probability(v_f32 x, bool sparse, v_f32 first, v_f32 second) {
    if (!sparse) return v_mul(v_exp(v_sub(x, first)), second);
    const v_f32 near = v_sub(v_sub(x, first), second), share = v_sub(v_zero(), second);
    const v_f32 over = v_select(v_less(second, v_zero()), share, near);
    const v_f32 member = v_select(v_less(over, v_zero()), v_zero(), over); /* NaN is not below 0 */
    return v_select(v_less(first, x), member, v_select(v_less(x, first), v_zero(), v_sub(x, first)));
}

/* The columns `first` to first + count - 1 of a row, and zeros where there is nothing. */
LIGER_TEMPLATE void load_row(liger_dtype t, const struct source *s, int64_t plane, int64_t row, int64_t first,
                             int64_t count, float *to) {
    const int64_t end = row < 0 || row >= s->size ? 0 : between(row + 1 - first, 0, count);
    const int64_t begin = between(-first, 0, end), r = plane * s->size + row;
    const void *const x = offset(s->values, t, r * s->size + first + begin);
    memset(to, 0, (size_t)begin * sizeof *to);
    memset(to + end, 0, (size_t)(count - end) * sizeof *to);
    if (end == begin) return;
    if (s->statistics == NULL) {
        V_FOR_EACH(i, n, end - begin, v_store_n(LIGER_F32, to, begin + i, n, v_load_n(t, x, i, n)));
        return;
    }
    const v_f32 a = v_set(s->statistics[2 * r]), b = v_set(s->statistics[2 * r + 1]);
    if (s->sparse) {
        V_FOR_EACH(i, n, end - begin,
                   v_store_n(LIGER_F32, to, begin + i, n, probability(v_load_n(t, x, i, n), true, a, b)));
    } else {
        V_FOR_EACH(i, n, end - begin, {
            const v_f32 p = probability(v_load_n(t, x, i, n), false, a, b);
            v_store_n(LIGER_F32, to, begin + i, n, v_round_to(t, p));
        });
    }
}

/* One of them: for what need not be fast. */
V_OUT_OF_LINE float value_at(liger_dtype t, const struct source *s, int64_t plane, int64_t row, int64_t col) {
    float value[V_LANES];
    LIGER_FOR_FLOAT(t, load_row(LIGER_T, s, plane, row, col, 1, value))
    return value[0];
}

/* x is loaded once, and not again by each instruction that takes it: most loads here cross two lines of the cache. */
LIGER_TEMPLATE v_f32 in_register(v_f32 x) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(x));
#elif defined(__x86_64__)
    __asm__("" : "+x"(x));
#elif defined(__aarch64__)
    __asm__("" : "+w"(x));
#endif
    return x;
}

/* ---- correlation ------------------------------------------------------------------------------------------------ */

/* out = Σ in · taps, over the input channels of a group, for the output channels of a group: forward, and with taps that are
 * turned over and channels that change places backward's dP. */
struct correlation {
    liger_dtype dtype, weight_dtype;
    const struct mta_shape *shape;
    struct source source;
    const void *weight, *bias;
    void *out;
    int64_t in_channels, out_channels; /* of a group */
    bool transposed;
};

static bool has_window(const struct mta_shape *s) {
    if (s->stride[0] != 1 || s->stride[1] != 1) return false;
    if (s->kernel[0] >= WINDOW / s->dilation[0] || s->kernel[1] >= WINDOW / s->dilation[1]) return false;
    const int64_t rows = MTA_ROWS + (s->kernel[0] + 3 * SUM_TAPS) * s->dilation[0];
    const int64_t cols = TILE_COLS + STEP + (s->kernel[1] + SUM_TAPS) * s->dilation[1];
    return rows < WINDOW / cols && s->kernel[0] * s->kernel[1] < WINDOW / V_LANES;
}

/* Rows of inputs j - dy apart from `rows` outputs meet the taps' row dy: those of the literal numbers low to high. */
LIGER_TEMPLATE void add_products(int low, int high, const float *in, int64_t step, int64_t kw, const float *taps,
                                 v_f32 (*sum)[VECTORS]) {
    for (int64_t v = 0; v < kw; v++, in += step, taps++) {
        v_f32 x[VECTORS];
#pragma GCC unroll 4
        for (int k = 0; k < VECTORS; k++) x[k] = in_register(v_load_f32(in + k * V_LANES));
#pragma GCC unroll 4
        for (int i = low; i <= high; i++) {
            const v_f32 tap = v_set(taps[-i * kw]);
#pragma GCC unroll 4
            for (int k = 0; k < VECTORS; k++) sum[i][k] = v_fma(tap, x[k], sum[i][k]);
        }
    }
}

/* Adds to `rows` rows of STEP outputs, which lie a dilation apart. */
LIGER_TEMPLATE void correlate_block(int rows, const struct mta_shape *s, const float *in, int64_t pitch,
                                    const float *taps, float *to, int64_t to_pitch) {
    const int64_t kh = s->kernel[0], kw = s->kernel[1], step = s->dilation[1];
    v_f32 sum[BLOCK][VECTORS];
    pitch *= s->dilation[0], to_pitch *= s->dilation[0];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int k = 0; k < VECTORS; k++) sum[i][k] = v_load_f32(to + i * to_pitch + k * V_LANES);
#pragma GCC unroll 4
    for (int j = 0; j < rows - 1; j++) add_products(0, j, in + j * pitch, step, kw, taps + j * kw, sum);
    for (int64_t j = rows - 1; j < kh; j++) add_products(0, rows - 1, in + j * pitch, step, kw, taps + j * kw, sum);
#pragma GCC unroll 4
    for (int j = 0; j < rows - 1; j++)
        add_products(j + 1, rows - 1, in + (kh + j) * pitch, step, kw, taps + (kh + j) * kw, sum);
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int k = 0; k < VECTORS; k++) v_store_f32(to + i * to_pitch + k * V_LANES, sum[i][k]);
}
V_OUT_OF_LINE void correlate_four(const struct mta_shape *s, const float *in, int64_t pitch, const float *taps,
                                  float *to, int64_t to_pitch) {
    correlate_block(BLOCK, s, in, pitch, taps, to, to_pitch);
}
V_OUT_OF_LINE void correlate_one(const struct mta_shape *s, const float *in, int64_t pitch, const float *taps,
                                 float *to, int64_t to_pitch) {
    correlate_block(1, s, in, pitch, taps, to, to_pitch);
}

/* Rows row to row + rows - 1 of a tile: blocks of rows that are a dilation apart, then what is left one by one. Columns beyond
 * a row are left out. */
static void correlate_tile(const struct mta_shape *s, int64_t row, int64_t col, int64_t rows, int64_t cols,
                           const float *window, int64_t pitch, const float *taps, float *tile) {
    const int64_t d = s->dilation[0];
    for (int64_t i = 0; i < rows;) {
        const bool four =
            s->kernel[0] >= BLOCK && i % (BLOCK * d) < d && i / (BLOCK * d) * (BLOCK * d) + BLOCK * d <= rows;
        const int64_t last = row + i + (four ? (BLOCK - 1) * d : 0);
        for (int64_t j = 0; j < cols && col + j <= last; j += STEP) {
            if (four) correlate_four(s, window + i * pitch + j, pitch, taps, tile + i * TILE_COLS + j, TILE_COLS);
            else correlate_one(s, window + i * pitch + j, pitch, taps, tile + i * TILE_COLS + j, TILE_COLS);
        }
        i += four && (i + 1) % d == 0 ? (BLOCK - 1) * d + 1 : 1;
    }
}

/* One channel's taps of another, turned over if transposed. Pairs are numbered as outputs and inputs are. */
static float tap_at(const struct correlation *c, int64_t group, int64_t out, int64_t in, int64_t k) {
    const int64_t taps = c->shape->kernel[0] * c->shape->kernel[1];
    const int64_t pair = c->transposed ? (group * c->in_channels + in) * c->out_channels + out
                                       : (group * c->out_channels + out) * c->in_channels + in;
    const int64_t at = pair * taps + k;
    LIGER_FOR_FLOAT(c->weight_dtype, return f32_load(LIGER_T, c->weight, at))
    return 0;
}

static float bias_of(const struct correlation *c, int64_t channel) {
    if (c->bias == NULL) return 0.0f;
    LIGER_FOR_FLOAT(c->weight_dtype, return f32_load(LIGER_T, c->bias, channel))
    return 0.0f;
}

LIGER_TEMPLATE void store_tile(liger_dtype t, const struct correlation *c, int64_t plane, int64_t row, int64_t col,
                               int64_t rows, int64_t cols, const float *tile) {
    const int64_t size = c->shape->size;
    const v_f32 bias = v_set(bias_of(c, plane % (c->out_channels * c->shape->groups)));
    for (int64_t i = 0; i < rows; i++) {
        const int64_t causal = between(row + i + 1 - col, 0, cols), at = (plane * size + row + i) * size + col;
        V_FOR_EACH(j, n, causal,
                   v_store_n(t, c->out, at + j, n, v_add(v_load_n(LIGER_F32, tile, i * TILE_COLS + j, n), bias)));
        memset(offset(c->out, t, at + causal), 0, (size_t)(cols - causal) * liger_dtype_size(t));
    }
}

/* A strip of MTA_ROWS rows of an output plane, tile by tile. */
LIGER_TEMPLATE void correlate_strip(liger_dtype t, const struct correlation *c, int64_t plane, int64_t row,
                                    float *memory) {
    const struct mta_shape *s = c->shape;
    const int64_t channels = c->out_channels * s->groups, channel = plane % channels;
    const int64_t group = channel / c->out_channels, taps = s->kernel[0] * s->kernel[1];
    const int64_t in_plane = plane / channels * c->in_channels * s->groups + group * c->in_channels;
    const int64_t rows = least(MTA_ROWS, s->size - row), window_rows = rows + (s->kernel[0] - 1) * s->dilation[0];
    const int64_t reach = (s->kernel[1] - 1) * s->dilation[1], pitch = TILE_COLS + round_up(reach, V_LANES);
    float *const tile = memory, *const tap = tile + MTA_ROWS * TILE_COLS, *const window = tap + round_up(taps, 16);
    for (int64_t col = 0; col < s->size; col += TILE_COLS) {
        const int64_t cols = least(TILE_COLS, s->size - col);
        const int64_t padded = round_up(least(cols, most(row + rows - col, 0)), STEP);
        memset(tile, 0, (size_t)(MTA_ROWS * TILE_COLS) * sizeof(float));
        for (int64_t k = 0; k < c->in_channels && padded > 0; k++) {
            for (int64_t i = 0; i < taps; i++)
                tap[i] = tap_at(c, group, channel % c->out_channels, k, c->transposed ? taps - 1 - i : i);
            const int64_t up = s->padding[0], left = s->padding[1];
            for (int64_t i = 0; i < window_rows; i++)
                load_row(t, &c->source, in_plane + k, row + i - up, col - left, padded + reach, window + i * pitch);
            correlate_tile(s, row, col, rows, padded, window, pitch, tap, tile);
        }
        store_tile(t, c, plane, row, col, rows, cols, tile);
    }
}

/* Place by place: which input meets tap `u` of the output at i. Transposed: which output of forward; -1: none. */
static int64_t place(const struct mta_shape *s, int dimension, bool transposed, int64_t i, int64_t u) {
    const int64_t shift = u * s->dilation[dimension] - s->padding[dimension], stride = s->stride[dimension];
    if (!transposed) return i * stride + shift;
    return i - shift < 0 || (i - shift) % stride ? -1 : (i - shift) / stride;
}

LIGER_TEMPLATE void correlate_places(liger_dtype t, const struct correlation *c, int64_t plane, int64_t row) {
    const struct mta_shape *s = c->shape;
    const int64_t channels = c->out_channels * s->groups, channel = plane % channels;
    const int64_t group = channel / c->out_channels, size = s->size;
    const int64_t in_plane = plane / channels * c->in_channels * s->groups + group * c->in_channels;
    for (int64_t at = row * size; at < least(row + MTA_ROWS, size) * size; at++) {
        const int64_t i = at / size, j = at % size;
        float sum = 0.0f;
        for (int64_t k = 0; k < c->in_channels && j <= i; k++)
            for (int64_t u = 0; u < s->kernel[0]; u++)
                for (int64_t v = 0; v < s->kernel[1]; v++) {
                    const int64_t y = place(s, 0, c->transposed, i, u), x = place(s, 1, c->transposed, j, v);
                    const float tap = tap_at(c, group, channel % c->out_channels, k, u * s->kernel[1] + v);
                    sum += tap * value_at(t, &c->source, in_plane + k, y, x);
                }
        f32_store(t, c->out, plane * size * size + at, j <= i ? sum + bias_of(c, channel) : 0.0f);
    }
}

static size_t correlation_bytes(const struct mta_shape *s) {
    const int64_t rows = MTA_ROWS + (s->kernel[0] - 1) * s->dilation[0];
    const int64_t pitch = TILE_COLS + round_up((s->kernel[1] - 1) * s->dilation[1], V_LANES);
    return (size_t)(MTA_ROWS * TILE_COLS + round_up(s->kernel[0] * s->kernel[1], 16) + rows * pitch) * sizeof(float);
}

static void correlate_strips(void *argument, int64_t begin, int64_t end) {
    const struct correlation *c = argument;
    const int64_t strips = mta_tile_rows(c->shape);
    float *const memory = has_window(c->shape) ? cpu_thread_scratch(correlation_bytes(c->shape)) : NULL;
    for (int64_t i = begin; i < end; i++) {
        const int64_t plane = i / strips, row = i % strips * MTA_ROWS;
        if (memory) LIGER_FOR_FLOAT(c->dtype, correlate_strip(LIGER_T, c, plane, row, memory))
        else LIGER_FOR_FLOAT(c->dtype, correlate_places(LIGER_T, c, plane, row))
    }
}

static void correlate(liger_context *context, struct correlation *c) {
    const int64_t planes = c->shape->batch * c->shape->groups * c->out_channels;
    liger_parallel_for(context, planes * mta_tile_rows(c->shape), 1, correlate_strips, c);
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

LIGER_TEMPLATE void softmax_statistics(liger_dtype t, const void *x, int64_t count, float *statistics) {
    float block[VOCAB_BLOCK + V_LANES];
    struct softmax_state state = softmax_empty();
    for (int64_t begin = 0; begin < count; begin += VOCAB_BLOCK) {
        const int64_t values = vocab_block(count, begin);
        const float max = vocab_widen(t, x, begin, values, false, 0.0f, block);
        state = softmax_push(state, block, round_up(values, V_LANES), max);
    }
    statistics[0] = state.max;
    statistics[1] = state.sum == 0.0f ? 0.0f : 1.0f / state.sum;
}

static void sparse_statistics(const float *x, int64_t count, float *statistics) {
    float lanes[SIMPLEX_CHAINS * V_LANES];
    const float max = simplex_largest(LIGER_F32, x, count, lanes);
    statistics[0] = max < 0.0f ? INFINITY : NAN, statistics[1] = max < 0.0f ? 0.0f : NAN;
    if (isinf(max)) return;
    const float start = threshold_of_list(lanes, SIMPLEX_CHAINS * V_LANES, max, float_below(max, -1)).above - 0x1p-14f;
    const struct threshold tau = threshold_of_list(x, count, max, start);
    statistics[0] = tau.above;
    statistics[1] = fabsf(max) >= MTA_SHARES
                        ? tau.rest
                        : (float)(((double)tau.origin - (double)tau.above) + (double)tau.rest + (double)tau.lower);
}

static void measure_rows(void *argument, int64_t begin, int64_t end) {
    const struct multi_token_attention_forward_problem *p = argument;
    const int64_t size = p->shape.size;
    for (int64_t r = begin; r < end; r++) {
        const void *const x = offset(p->scores, p->dtype, r * size);
        if (p->shape.sparse) sparse_statistics(x, r % size + 1, p->statistics + 2 * r);
        else LIGER_FOR_FLOAT(p->dtype, softmax_statistics(LIGER_T, x, r % size + 1, p->statistics + 2 * r))
    }
}

liger_status LIGER_CPU(multi_token_attention_forward)(liger_context *context,
                                                      const struct multi_token_attention_forward_problem *problem,
                                                      liger_stream stream) {
    (void)stream;
    struct multi_token_attention_forward_problem p = *problem;
    const struct mta_shape *s = &p.shape;
    struct correlation c = {p.dtype,
                            p.weight_dtype,
                            s,
                            {p.scores, p.statistics, s->size, s->sparse},
                            p.weight,
                            p.bias,
                            p.y,
                            mta_in_of_group(s),
                            s->out / s->groups,
                            false};
    liger_parallel_for(context, s->batch * s->in * s->size, vocab_rows_per_task(s->size, p.dtype), measure_rows, &p);
    correlate(context, &c);
    return LIGER_OK;
}

/* ---- backward: dscores ------------------------------------------------------------------------------------------ */

/* dP, in the place of dscores, becomes dscores. */
LIGER_TEMPLATE void softmax_backward(liger_dtype t, const void *x, const float *statistics, int64_t count, void *dx) {
    const v_f32 max = v_set(statistics[0]), share = v_set(statistics[1]);
    v_f32 sums[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 4, count, {
        const v_f32 p = probability(v_load_n(t, x, i, n), false, max, share);
        sums[k] = v_add(sums[k], v_first(v_mul(p, v_load_n(t, dx, i, n)), n));
    });
    const v_f32 dot = v_set(v_sum(v_add(v_add(sums[0], sums[1]), v_add(sums[2], sums[3]))));
    V_FOR_EACH(i, n, count, {
        const v_f32 p = probability(v_load_n(t, x, i, n), false, max, share);
        v_store_n(t, dx, i, n, v_mul(p, v_sub(v_load_n(t, dx, i, n), dot)));
    });
}

/* The support is what is above the threshold, or all where it is NaN. */
static void sparse_backward(const float *x, const float *statistics, int64_t count, float *dx) {
    const v_f32 above = v_set(isnan(statistics[0]) ? -INFINITY : statistics[0]);
    const bool all = isnan(statistics[0]);
    double sum = 0;
    int64_t members = 0;
    for (int64_t block = 0; block < count; block += VOCAB_BLOCK) {
        v_f32 part = v_zero();
        V_FOR_EACH(i, n, vocab_block(count, block), {
            const uint32_t some = v_bits_of(v_less(above, v_load_n(LIGER_F32, x, block + i, n)));
            const uint32_t bits = (all ? UINT32_MAX : some) & UINT32_MAX >> (32 - n);
            part = v_add(part, v_select(v_mask_of(bits), v_load_n(LIGER_F32, dx, block + i, n), v_zero()));
            members += __builtin_popcount(bits);
        });
        sum += v_sum(part);
    }
    const v_f32 mean = v_set((float)(sum / (double)(members ? members : 1)));
    V_FOR_EACH(i, n, count, {
        const v_f32 apart = v_sub(v_load_n(LIGER_F32, dx, i, n), mean);
        const v_f32 member = v_select(v_less(above, v_load_n(LIGER_F32, x, i, n)), apart, v_zero());
        v_store_n(LIGER_F32, dx, i, n, all ? apart : member);
    });
}

LIGER_TEMPLATE void backward_row(liger_dtype t, const struct multi_token_attention_backward_problem *p, int64_t r) {
    const int64_t size = p->shape.size, count = r % size + 1;
    const float *statistics = p->statistics + 2 * r;
    const void *const x = offset(p->scores, t, r * size);
    void *const dx = offset(p->dscores, t, r * size);
    if (p->shape.sparse) sparse_backward(x, statistics, count, dx);
    else if (statistics[1] == 0.0f) memset(dx, 0, (size_t)count * liger_dtype_size(t));
    else softmax_backward(t, x, statistics, count, dx);
}
static void backward_rows(void *argument, int64_t begin, int64_t end) {
    const struct multi_token_attention_backward_problem *p = argument;
    for (int64_t r = begin; r < end; r++) LIGER_FOR_FLOAT(p->dtype, backward_row(LIGER_T, p, r))
}

/* ---- backward: dweight and dbias -------------------------------------------------------------------------------- */

/* 3 x 3 taps from (u, v) on, of MTA_ROWS x cols outputs: sums[(u + a) · sums_pitch + v + b]. A row of inputs meets the outputs of
 * three rows, of which two dilations above and below the tile are zeros: it is loaded once. */
V_OUT_OF_LINE void add_tap_sums(const struct mta_shape *s, const float *in, int64_t pitch, const float *dy,
                                int64_t cols, float *sums, int64_t sums_pitch) {
    const int64_t up = s->dilation[0] * TILE_COLS, right = s->dilation[1];
    v_f32 sum[SUM_TAPS][SUM_TAPS];
#pragma GCC unroll 3
    for (int a = 0; a < SUM_TAPS; a++)
#pragma GCC unroll 3
        for (int b = 0; b < SUM_TAPS; b++) sum[a][b] = v_load_f32(sums + (a * sums_pitch + b) * V_LANES);
    for (int64_t i = 0; i < MTA_ROWS + (SUM_TAPS - 1) * s->dilation[0]; i++, in += pitch, dy += TILE_COLS)
        for (int64_t j = 0; j < cols; j += V_LANES) {
            v_f32 x[SUM_TAPS];
#pragma GCC unroll 3
            for (int b = 0; b < SUM_TAPS; b++) x[b] = in_register(v_load_f32(in + j + b * right));
#pragma GCC unroll 3
            for (int a = 0; a < SUM_TAPS; a++) {
                const v_f32 g = in_register(v_load_f32(dy + j - a * up));
#pragma GCC unroll 3
                for (int b = 0; b < SUM_TAPS; b++) sum[a][b] = v_fma(g, x[b], sum[a][b]);
            }
        }
#pragma GCC unroll 3
    for (int a = 0; a < SUM_TAPS; a++)
#pragma GCC unroll 3
        for (int b = 0; b < SUM_TAPS; b++) v_store_f32(sums + (a * sums_pitch + b) * V_LANES, sum[a][b]);
}

struct tap_sums {
    const struct multi_token_attention_backward_problem *p;
    struct source scores, upstream;
};

/* Of a sum of taps: its rows and columns rounded up, vectors of it, the window and, between rows of zeros, the upstream of a
 * tile. */
struct sum_memory {
    int64_t kh, kw, pitch, zeros;
    float *sums, *window, *dy;
};
static struct sum_memory sum_memory_of(const struct mta_shape *s, float *memory) {
    struct sum_memory m = {.kh = round_up(s->kernel[0], SUM_TAPS), .kw = round_up(s->kernel[1], SUM_TAPS)};
    m.pitch = TILE_COLS + round_up((m.kw - 1) * s->dilation[1], V_LANES);
    m.zeros = (SUM_TAPS - 1) * s->dilation[0] * TILE_COLS;
    m.sums = memory;
    m.dy = m.sums + m.kh * m.kw * V_LANES + m.zeros;
    m.window = m.dy + MTA_ROWS * TILE_COLS + m.zeros;
    return m;
}
static size_t sum_bytes(const struct mta_shape *s) {
    static float nowhere[1];
    const struct sum_memory m = sum_memory_of(s, nowhere);
    const int64_t rows = MTA_ROWS + (m.kh - 1) * s->dilation[0];
    const int64_t around = m.kh * m.kw * V_LANES + 2 * m.zeros + MTA_ROWS * TILE_COLS;
    return (size_t)(around + rows * m.pitch) * sizeof(float);
}

/* One tile's sums of taps, in parts that L1 holds; `plain` gets the sum of the upstream. */
LIGER_TEMPLATE void sum_tile(liger_dtype t, const struct tap_sums *q, int64_t out_plane, int64_t in_plane, int64_t row,
                             int64_t col, const struct sum_memory *m, bool taps, double *plain) {
    const struct mta_shape *s = &q->p->shape;
    const int64_t cols = round_up(least(TILE_COLS, row + MTA_ROWS - col), V_LANES);
    for (int64_t i = 0; i < MTA_ROWS; i++) {
        v_f32 sum = v_zero();
        load_row(t, &q->upstream, out_plane, row + i, col, cols, m->dy + i * TILE_COLS);
        for (int64_t j = 0; j < cols; j += V_LANES) sum = v_add(sum, v_load_f32(m->dy + i * TILE_COLS + j));
        *plain += v_sum(sum);
    }
    if (!taps) return;
    for (int64_t i = 0; i < MTA_ROWS + (m->kh - 1) * s->dilation[0]; i++)
        load_row(t, &q->scores, in_plane, row + i - s->padding[0], col - s->padding[1],
                 cols + (m->kw - 1) * s->dilation[1], m->window + i * m->pitch);
    for (int64_t j = 0; j < cols; j += SUM_COLS)
        for (int64_t u = 0; u < m->kh; u += SUM_TAPS)
            for (int64_t v = 0; v < m->kw; v += SUM_TAPS) {
                const float *in = m->window + u * s->dilation[0] * m->pitch + j + v * s->dilation[1];
                add_tap_sums(s, in, m->pitch, m->dy + j, least(SUM_COLS, cols - j), m->sums + (u * m->kw + v) * V_LANES,
                             m->kw);
            }
}

/* Every chunks-th strip of a pair of channels. */
LIGER_TEMPLATE void sum_strips(liger_dtype t, const struct tap_sums *q, int64_t out, int64_t in, int64_t chunk,
                               float *memory) {
    const struct mta_shape *s = &q->p->shape;
    const int64_t strips = mta_tile_rows(s), taps = s->kernel[0] * s->kernel[1];
    const struct sum_memory m = sum_memory_of(s, memory);
    float *const part = q->p->workspace + chunk * (mta_taps(s) + s->out);
    double plain = 0;
    memset(m.sums, 0, (size_t)(m.dy - m.sums) * sizeof(float));
    memset(m.dy + MTA_ROWS * TILE_COLS, 0, (size_t)m.zeros * sizeof(float));
    for (int64_t i = chunk; i < s->batch * strips; i += s->chunks) {
        const int64_t row = i % strips * MTA_ROWS;
        const int64_t group = out / (s->out / s->groups);
        const int64_t in_plane = i / strips * s->in + group * mta_in_of_group(s) + in;
        for (int64_t col = 0; col < least(row + MTA_ROWS, s->size); col += TILE_COLS)
            sum_tile(t, q, i / strips * s->out + out, in_plane, row, col, &m, q->p->dweight != NULL, &plain);
    }
    for (int64_t k = 0; k < taps; k++) {
        const float *of_tap = m.sums + (k / s->kernel[1] * m.kw + k % s->kernel[1]) * V_LANES;
        part[(out * mta_in_of_group(s) + in) * taps + k] = v_sum(v_load_f32(of_tap));
    }
    if (in == 0) part[mta_taps(s) + out] = (float)plain;
}

LIGER_TEMPLATE void sum_places(liger_dtype t, const struct tap_sums *q, int64_t out, int64_t in, int64_t chunk) {
    const struct mta_shape *s = &q->p->shape;
    const int64_t strips = mta_tile_rows(s), taps = s->kernel[0] * s->kernel[1], group = out / (s->out / s->groups);
    float *const part = q->p->workspace + chunk * (mta_taps(s) + s->out);
    for (int64_t k = -1; k < taps; k++) { /* -1: dbias */
        double sum = 0;
        for (int64_t i = chunk; i < s->batch * strips; i += s->chunks)
            for (int64_t r = i % strips * MTA_ROWS; r < least(i % strips * MTA_ROWS + MTA_ROWS, s->size); r++)
                for (int64_t c = 0; c <= r; c++) {
                    const int64_t y = place(s, 0, false, r, k / s->kernel[1]),
                                  x = place(s, 1, false, c, k % s->kernel[1]);
                    const int64_t in_plane = i / strips * s->in + group * mta_in_of_group(s) + in;
                    const float g = value_at(t, &q->upstream, i / strips * s->out + out, r, c);
                    sum += k < 0 ? g : g * value_at(t, &q->scores, in_plane, y, x);
                }
        if (k >= 0) part[(out * mta_in_of_group(s) + in) * taps + k] = (float)sum;
        else if (in == 0) part[mta_taps(s) + out] = (float)sum;
    }
}

static void sum_pairs(void *argument, int64_t begin, int64_t end) {
    const struct tap_sums *q = argument;
    const struct mta_shape *s = &q->p->shape;
    float *const memory = has_window(s) ? cpu_thread_scratch(sum_bytes(s)) : NULL;
    for (int64_t i = begin; i < end; i++) {
        const int64_t chunk = i % s->chunks, pair = i / s->chunks;
        const int64_t out = pair / mta_in_of_group(s), in = pair % mta_in_of_group(s);
        if (in > 0 && q->p->dweight == NULL) continue;
        if (memory) LIGER_FOR_FLOAT(q->p->dtype, sum_strips(LIGER_T, q, out, in, chunk, memory))
        else LIGER_FOR_FLOAT(q->p->dtype, sum_places(LIGER_T, q, out, in, chunk))
    }
}

/* Element i of dweight and, behind it, dbias: the sum of its parts. */
static void add_chunks(const struct multi_token_attention_backward_problem *p) {
    const int64_t taps = mta_taps(&p->shape), stride = taps + p->shape.out;
    for (int64_t i = p->dweight ? 0 : taps; i < (p->dbias ? stride : taps); i++) {
        double sum = 0;
        for (int64_t k = 0; k < p->shape.chunks; k++) sum += p->workspace[k * stride + i];
        LIGER_FOR_FLOAT(p->weight_dtype,
                        f32_store(LIGER_T, i < taps ? p->dweight : p->dbias, i < taps ? i : i - taps, (float)sum))
    }
}

liger_status LIGER_CPU(multi_token_attention_backward)(liger_context *context,
                                                       const struct multi_token_attention_backward_problem *problem,
                                                       liger_stream stream) {
    (void)stream;
    struct multi_token_attention_backward_problem p = *problem;
    const struct mta_shape *s = &p.shape;
    const struct source scores = {p.scores, p.statistics, s->size, s->sparse}, upstream = {p.dy, NULL, s->size, false};
    if (p.dscores) {
        struct correlation c = {
            p.dtype, p.weight_dtype, s, upstream, p.weight, NULL, p.dscores, s->out / s->groups, mta_in_of_group(s),
            true};
        correlate(context, &c);
        liger_parallel_for(context, s->batch * s->in * s->size, vocab_rows_per_task(s->size, p.dtype), backward_rows,
                           &p);
    }
    if (p.dweight || p.dbias) {
        struct tap_sums q = {&p, scores, upstream};
        liger_parallel_for(context, s->out * mta_in_of_group(s) * s->chunks, 1, sum_pairs, &q);
        add_chunks(&p);
    }
    return LIGER_OK;
}
