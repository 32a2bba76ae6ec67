/* group_norm_cpu.c - GroupNorm on the CPU, compiled once per instruction set.
 *
 * A row, one group of one sample, is a thread's, and is read again from its caches. Where rows are fewer than the threads may
 * be, forward cuts them into chunks and backward into planes: what is to be known of a whole row is then gathered between
 * two passes. Planes of fewer elements than a few vectors would leave lanes idle: such rows are walked as one piece, beside
 * parameters that are spread out over it. */
#include <math.h>

#include "liger/core/kernel_table.h"
#include "liger/cpu/moments.h"
#include "liger/cpu/parallel.h"
#include "liger/ops/group_norm/group_norm_problem.h"

enum {
    BYTES_PER_TASK = 32 << 10,
    CHANNELS_PER_TASK = 4096,
    NARROW_PLANE = 32, /* elements, at most, and of a row of such planes: */
    NARROW_COLS = 1024,
    NARROW_SAMPLES = 8, /* that share what has been spread out, in forward */
    NARROW_UNITS = 16   /* of samples, whose parts of the parameters' gradients are added in order */
};

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Tasks of one row, or of one plane. */
static int64_t grain(liger_dtype t, int64_t elements) {
    return 1 + BYTES_PER_TASK / (elements * (int64_t)liger_dtype_size(t));
}
static void *element_at(const void *x, liger_dtype t, int64_t i) {
    return (char *)(uintptr_t)x + i * (int64_t)liger_dtype_size(t);
}

static bool is_narrow(const struct group_norm_shape *s) {
    return s->spatial <= NARROW_PLANE && group_norm_cols(s) <= NARROW_COLS;
}
/* The parameters of a group's channels, one for each column. */
static void spread(const struct group_norm_shape *s, liger_dtype dtype, const void *parameters, int64_t group,
                   float *columns) {
    const int64_t per_group = s->channels / s->groups;
    for (int64_t c = 0; c < per_group; c++) {
        const float value = f32_load(dtype, parameters, group * per_group + c);
        for (int64_t i = 0; i < s->spatial; i++) *columns++ = value;
    }
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static float rstd_of(const struct group_norm_forward_problem *p, double variance) {
    return 1.0f / sqrtf((float)variance + p->epsilon);
}

static void keep(const struct group_norm_forward_problem *p, int64_t r, float mean, float rstd) {
    if (p->statistics) p->statistics[r] = mean, p->statistics[group_norm_rows(&p->shape) + r] = rstd;
}

/* Columns begin to end - 1 of row r: one plane after the other. What the mean lacks shifts every normal. */
LIGER_TEMPLATE void scale_columns(liger_dtype t, const struct group_norm_forward_problem *p, int64_t r, int64_t begin,
                                  int64_t end, const struct moments *m, float inverse) {
    const v_f32 mean = v_set(m->mean), rstd = v_set(inverse), shift = v_set(-m->missing * inverse);
    const int64_t spatial = p->shape.spatial, first = r * group_norm_cols(&p->shape);
    for (int64_t at = begin, stop; at < end; at = stop) {
        stop = smaller((at / spatial + 1) * spatial, end);
        const int64_t c = (first + at) / spatial % p->shape.channels;
        const v_f32 weight = v_set(f32_load(p->weight_dtype, p->weight, c));
        const v_f32 bias = v_set(f32_load(p->weight_dtype, p->bias, c));
        const void *x = element_at(p->x, t, first + at);
        void *y = element_at(p->y, t, first + at);
        V_FOR_EACH(i, n, stop - at, {
            const v_f32 normal = v_fma(v_sub(v_load_n(t, x, i, n), mean), rstd, shift);
            v_store_n(t, y, i, n, v_add(v_mul(normal, weight), bias));
        });
    }
}

/* Rows of one group after the other. */
LIGER_TEMPLATE void forward_narrow(liger_dtype t, const struct group_norm_forward_problem *p, int64_t begin,
                                   int64_t end) {
    const int64_t cols = group_norm_cols(&p->shape), groups = p->shape.groups;
    float weight[NARROW_COLS], bias[NARROW_COLS];
    for (int64_t first = begin; first < smaller(begin + groups, end); first++) {
        spread(&p->shape, p->weight_dtype, p->weight, first % groups, weight);
        spread(&p->shape, p->weight_dtype, p->bias, first % groups, bias);
        for (int64_t r = first; r < end; r += groups) {
            const void *x = element_at(p->x, t, r * cols);
            void *y = element_at(p->y, t, r * cols);
            const struct moments m = moments_of(t, x, cols);
            const float inverse = rstd_of(p, m.variance);
            const v_f32 mean = v_set(m.mean), rstd = v_set(inverse), shift = v_set(-m.missing * inverse);
            keep(p, r, m.mean, inverse);
            V_FOR_EACH(i, n, cols, {
                const v_f32 normal = v_fma(v_sub(v_load_n(t, x, i, n), mean), rstd, shift);
                const v_f32 scaled = v_mul(normal, v_load_n(LIGER_F32, weight, i, n));
                v_store_n(t, y, i, n, v_add(scaled, v_load_n(LIGER_F32, bias, i, n)));
            });
        }
    }
}
static void forward_narrow_chunk(void *argument, int64_t begin, int64_t end) {
    const struct group_norm_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, forward_narrow(LIGER_T, p, begin, end))
}

LIGER_TEMPLATE void forward_rows(liger_dtype t, const struct group_norm_forward_problem *p, int64_t begin,
                                 int64_t end) {
    const int64_t cols = group_norm_cols(&p->shape);
    for (int64_t r = begin; r < end; r++) {
        const struct moments m = moments_of(t, element_at(p->x, t, r * cols), cols);
        const float rstd = rstd_of(p, m.variance);
        keep(p, r, m.mean, rstd);
        scale_columns(t, p, r, 0, cols, &m, rstd);
    }
}
static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct group_norm_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, forward_rows(LIGER_T, p, begin, end))
}

/* Chunk k of a row: its first column, and where it ends. The last ones may be empty. */
static int64_t chunk_begin(const struct group_norm_forward_problem *p, int64_t k) {
    const int64_t cols = group_norm_cols(&p->shape);
    return smaller(k * ((cols + p->cut.chunks - 1) / p->cut.chunks), cols);
}

/* Of each chunk its mean, what that lacks, variance and size. */
LIGER_TEMPLATE void measure_chunks(liger_dtype t, const struct group_norm_forward_problem *p, int64_t begin,
                                   int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        const int64_t first = chunk_begin(p, i % p->cut.chunks), last = chunk_begin(p, i % p->cut.chunks + 1);
        const int64_t row = i / p->cut.chunks * group_norm_cols(&p->shape);
        struct moments m = {0, 0, 0};
        if (last > first) m = moments_of(t, element_at(p->x, t, row + first), last - first);
        const float of_chunk[4] = {m.mean, m.missing, m.variance, (float)(last - first)};
        memcpy(p->workspace + 4 * i, of_chunk, sizeof of_chunk);
    }
}
static void measure_chunk(void *argument, int64_t begin, int64_t end) {
    const struct group_norm_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, measure_chunks(LIGER_T, p, begin, end))
}

/* Of a row, from its chunks'. */
static struct moments merged(const float (*part)[4], int64_t chunks, double cols) {
    const double origin = fabsf(part[0][0]) < INFINITY ? part[0][0] : 0; /* of one value nothing remains without it */
    double rest = 0, variance = 0;
    for (int64_t j = 0; j < chunks; j++) rest += part[j][3] / cols * ((part[j][0] - origin) + part[j][1]);
    for (int64_t j = 0; j < chunks; j++) {
        const double apart = (part[j][0] - origin) + part[j][1] - rest;
        variance += part[j][3] / cols * (part[j][2] + apart * apart);
    }
    const float mean = (float)(origin + rest);
    return (struct moments){mean, (float)(rest - (mean - origin)), (float)variance};
}

LIGER_TEMPLATE void scale_chunks(liger_dtype t, const struct group_norm_forward_problem *p, int64_t begin,
                                 int64_t end) {
    const double cols = (double)group_norm_cols(&p->shape);
    for (int64_t i = begin; i < end; i++) {
        const int64_t r = i / p->cut.chunks, k = i % p->cut.chunks;
        const float(*parts)[4] = (const float(*)[4])p->workspace;
        const struct moments m = merged(parts + r * p->cut.chunks, p->cut.chunks, cols);
        const float rstd = rstd_of(p, m.variance);
        if (k == 0) keep(p, r, m.mean, rstd);
        scale_columns(t, p, r, chunk_begin(p, k), chunk_begin(p, k + 1), &m, rstd);
    }
}
static void scale_chunk(void *argument, int64_t begin, int64_t end) {
    const struct group_norm_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, scale_chunks(LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(group_norm_forward)(liger_context *context, const struct group_norm_forward_problem *problem,
                                           liger_stream stream) {
    (void)stream;
    struct group_norm_forward_problem p = *problem;
    const int64_t rows = group_norm_rows(&p.shape);
    if (p.cut.chunks > 1) {
        liger_parallel_for(context, rows * p.cut.chunks, 1, measure_chunk, &p);
        liger_parallel_for(context, rows * p.cut.chunks, 1, scale_chunk, &p);
    } else if (is_narrow(&p.shape)) {
        const int64_t least = grain(p.dtype, group_norm_cols(&p.shape)), useful = NARROW_SAMPLES * p.shape.groups;
        const int64_t shared = smaller(useful, rows / NARROW_SAMPLES);
        liger_parallel_for(context, rows, least > shared ? least : shared, forward_narrow_chunk, &p);
    } else {
        liger_parallel_for(context, rows, grain(p.dtype, group_norm_cols(&p.shape)), forward_chunk, &p);
    }
    return LIGER_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* A plane: of channel `plane % channels` of one sample. */
struct plane {
    const void *dy, *x;
    void *dx;
    int64_t row, channel;
    v_f32 mean, rstd;
};

LIGER_TEMPLATE struct plane plane_at(liger_dtype t, const struct group_norm_backward_problem *p, int64_t plane) {
    const struct group_norm_shape *s = &p->shape;
    const int64_t r = plane / (s->channels / s->groups), first = plane * s->spatial;
    return (struct plane){.dy = element_at(p->dy, t, first),
                          .x = element_at(p->x, t, first),
                          .dx = p->dx ? element_at(p->dx, t, first) : NULL,
                          .row = r,
                          .channel = plane % s->channels,
                          .mean = v_set(p->statistics[r]),
                          .rstd = v_set(p->statistics[group_norm_rows(s) + r])};
}

LIGER_TEMPLATE v_f32 normal_at(liger_dtype t, const struct plane *at, int64_t i, int n) {
    return v_mul(v_sub(v_load_n(t, at->x, i, n), at->mean), at->rstd);
}

/* The workspace: sums of dy over each plane, of dy · n, and both means of each row. */
static float *sums_of(const struct group_norm_backward_problem *p, int which) {
    return p->workspace + which * p->shape.batch * p->shape.channels;
}

LIGER_TEMPLATE void sum_planes(liger_dtype t, const struct group_norm_backward_problem *p, int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; plane++) {
        const struct plane at = plane_at(t, p, plane);
        v_f32 sum[2] = {v_zero(), v_zero()}, dot[2] = {v_zero(), v_zero()};
        V_FOR_EACH_CHAIN(i, n, k, 2, p->shape.spatial, {
            const v_f32 dy = v_load_n(t, at.dy, i, n);
            sum[k] = v_add(sum[k], dy);
            dot[k] = v_fma(dy, normal_at(t, &at, i, n), dot[k]);
        });
        sums_of(p, 0)[plane] = v_sum(v_add(sum[0], sum[1]));
        sums_of(p, 1)[plane] = v_sum(v_add(dot[0], dot[1]));
    }
}

static void average_row(const struct group_norm_backward_problem *p, int64_t r) {
    const int64_t per_group = p->shape.channels / p->shape.groups;
    double of_g = 0, of_product = 0;
    for (int64_t plane = r * per_group; plane < (r + 1) * per_group; plane++) {
        const double weight = f32_load(p->weight_dtype, p->weight, plane % p->shape.channels);
        of_g += weight * sums_of(p, 0)[plane];
        of_product += weight * sums_of(p, 1)[plane];
    }
    sums_of(p, 2)[2 * r] = (float)(of_g / (double)group_norm_cols(&p->shape));
    sums_of(p, 2)[2 * r + 1] = (float)(of_product / (double)group_norm_cols(&p->shape));
}

LIGER_TEMPLATE void write_planes(liger_dtype t, const struct group_norm_backward_problem *p, int64_t begin,
                                 int64_t end) {
    for (int64_t plane = begin; plane < end; plane++) {
        const struct plane at = plane_at(t, p, plane);
        const float *means = sums_of(p, 2) + 2 * at.row;
        const v_f32 of_g = v_set(means[0]), of_product = v_set(means[1]);
        const v_f32 weight = v_set(f32_load(p->weight_dtype, p->weight, at.channel));
        V_FOR_EACH(i, n, p->shape.spatial, {
            const v_f32 rest = v_sub(v_mul(v_load_n(t, at.dy, i, n), weight), of_g);
            v_store_n(t, at.dx, i, n, v_mul(at.rstd, v_fnma(of_product, normal_at(t, &at, i, n), rest)));
        });
    }
}

LIGER_TEMPLATE void backward_rows(liger_dtype t, const struct group_norm_backward_problem *p, int64_t begin,
                                  int64_t end) {
    const int64_t per_group = p->shape.channels / p->shape.groups;
    for (int64_t r = begin; r < end; r++) {
        sum_planes(t, p, r * per_group, (r + 1) * per_group);
        average_row(p, r);
        if (p->dx) write_planes(t, p, r * per_group, (r + 1) * per_group);
    }
}

static void backward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct group_norm_backward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, backward_rows(LIGER_T, p, begin, end))
}
static void sum_chunk(void *argument, int64_t begin, int64_t end) {
    const struct group_norm_backward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, sum_planes(LIGER_T, p, begin, end))
}
static void write_chunk(void *argument, int64_t begin, int64_t end) {
    const struct group_norm_backward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, write_planes(LIGER_T, p, begin, end))
}

/* Units of samples, each with sums of dy and of dy · n over its samples, for every channel and place in its plane, where wider
 * planes have theirs. 0: there are too few samples for that. */
static int64_t narrow_units(const struct group_norm_backward_problem *p) {
    return is_narrow(&p->shape) ? smaller(p->shape.batch / p->shape.spatial, NARROW_UNITS) : 0;
}
static float *narrow_sums(const struct group_norm_backward_problem *p, int which, int64_t unit) {
    return p->workspace + (which * narrow_units(p) + unit) * p->shape.channels * p->shape.spatial;
}

/* A group of one sample: both means, dx, and its part in the sums. */
LIGER_TEMPLATE void narrow_row(liger_dtype t, const struct group_norm_backward_problem *p, int64_t r,
                               const float *weight, float *upstreams, float *products) {
    const int64_t cols = group_norm_cols(&p->shape);
    const struct plane at = plane_at(t, p, r * (p->shape.channels / p->shape.groups));
    v_f32 sum = v_zero(), dot = v_zero();
    V_FOR_EACH(i, n, cols, {
        const v_f32 dy = v_load_n(t, at.dy, i, n), normal = normal_at(t, &at, i, n);
        const v_f32 g = v_mul(dy, v_load_n(LIGER_F32, weight, i, n));
        sum = v_add(sum, g);
        dot = v_fma(g, normal, dot);
        v_store_n(LIGER_F32, upstreams, i, n, v_add(dy, v_load_n(LIGER_F32, upstreams, i, n)));
        v_store_n(LIGER_F32, products, i, n, v_fma(dy, normal, v_load_n(LIGER_F32, products, i, n)));
    });
    if (p->dx == NULL) return;
    const v_f32 of_g = v_set(v_sum(sum) / (float)cols), of_product = v_set(v_sum(dot) / (float)cols);
    V_FOR_EACH(i, n, cols, {
        const v_f32 g = v_mul(v_load_n(t, at.dy, i, n), v_load_n(LIGER_F32, weight, i, n));
        v_store_n(t, at.dx, i, n, v_mul(at.rstd, v_fnma(of_product, normal_at(t, &at, i, n), v_sub(g, of_g))));
    });
}

/* A task: a group of the samples of a unit. */
static void narrow_chunk(void *argument, int64_t begin, int64_t end) {
    const struct group_norm_backward_problem *p = argument;
    const int64_t cols = group_norm_cols(&p->shape), groups = p->shape.groups, units = narrow_units(p);
    float weight[NARROW_COLS];
    for (int64_t task = begin; task < end; task++) {
        const int64_t unit = task / groups, group = task % groups;
        float *upstreams = narrow_sums(p, 0, unit) + group * cols, *products = narrow_sums(p, 1, unit) + group * cols;
        memset(upstreams, 0, (size_t)cols * sizeof *upstreams);
        memset(products, 0, (size_t)cols * sizeof *products);
        spread(&p->shape, p->weight_dtype, p->weight, group, weight);
        for (int64_t b = unit * p->shape.batch / units; b < (unit + 1) * p->shape.batch / units; b++)
            LIGER_FOR_FLOAT(p->dtype, narrow_row(LIGER_T, p, b * groups + group, weight, upstreams, products))
    }
}

static void add_units(void *argument, int64_t begin, int64_t end) {
    const struct group_norm_backward_problem *p = argument;
    void *const to[2] = {p->dbias, p->dweight};
    for (int k = 0; k < 2; k++)
        for (int64_t c = begin; to[k] && c < end; c++) {
            double total = 0;
            for (int64_t unit = 0; unit < narrow_units(p); unit++)
                for (int64_t i = 0; i < p->shape.spatial; i++)
                    total += narrow_sums(p, k, unit)[c * p->shape.spatial + i];
            LIGER_FOR_FLOAT(p->weight_dtype, f32_store(LIGER_T, to[k], c, (float)total))
        }
}

/* Of each channel, over the samples. */
static void add_samples(void *argument, int64_t begin, int64_t end) {
    const struct group_norm_backward_problem *p = argument;
    void *const to[2] = {p->dbias, p->dweight};
    for (int k = 0; k < 2; k++) {
        if (to[k] == NULL) continue;
        V_FOR_EACH(c, n, end - begin, {
            v_f32 total = v_zero();
            for (int64_t b = 0; b < p->shape.batch; b++)
                total = v_add(total, v_load_n(LIGER_F32, sums_of(p, k), b * p->shape.channels + begin + c, n));
            LIGER_FOR_FLOAT(p->weight_dtype, v_store_n(LIGER_T, to[k], begin + c, n, total))
        });
    }
}

liger_status LIGER_CPU(group_norm_backward)(liger_context *context, const struct group_norm_backward_problem *problem,
                                            liger_stream stream) {
    (void)stream;
    struct group_norm_backward_problem p = *problem;
    const int64_t rows = group_norm_rows(&p.shape), planes = p.shape.batch * p.shape.channels;
    const int64_t units = narrow_units(&p);
    if (units > 0) {
        liger_parallel_for(context, units * p.shape.groups, 1, narrow_chunk, &p);
        liger_parallel_for(context, p.shape.channels, CHANNELS_PER_TASK / NARROW_PLANE, add_units, &p);
        return LIGER_OK;
    }
    if (rows >= GROUP_NORM_CPU_ROWS) {
        liger_parallel_for(context, rows, grain(p.dtype, group_norm_cols(&p.shape)), backward_chunk, &p);
    } else {
        liger_parallel_for(context, planes, grain(p.dtype, p.shape.spatial), sum_chunk, &p);
        for (int64_t r = 0; r < rows; r++) average_row(&p, r);
        if (p.dx) liger_parallel_for(context, planes, grain(p.dtype, p.shape.spatial), write_chunk, &p);
    }
    liger_parallel_for(context, p.shape.channels, CHANNELS_PER_TASK, add_samples, &p);
    return LIGER_OK;
}
