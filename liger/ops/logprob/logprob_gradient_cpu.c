/* logprob_gradient_cpu.c - from upstream gradients to that of a slice of the logits on the CPU, compiled once per instruction
 * set. Threads share out the rows. */
#include "liger/core/kernel_table.h"
#include "liger/ops/logprob/logprob_map_cpu.h"

/* ---- weights ------------------------------------------------------------------------------------------------------ */

static struct logits_gradient_row weigh(const struct logprob_weights_problem *p, int64_t r) {
    const int64_t y = index_load(p->target_dtype, p->target, r);
    const struct logprob_upstreams *up = &p->upstream;
    if (y == p->ignore_index) return (struct logits_gradient_row){.target = -1};
    struct logits_gradient_row row = logprob_weigh(p, r, y, logprob_upstream(up->lse, r));
    float sum = 0.0f;
    for (int64_t k = 0; up->selected && k < p->selected_count; k++) sum += up->selected[r * p->selected_count + k];
    row.by_p -= sum;
    return row;
}

static void weights_chunk(void *argument, int64_t begin, int64_t end) {
    const struct logprob_weights_problem *p = argument;
    for (int64_t i = begin; i < end; i++) p->weights[i] = weigh(p, p->row_of ? p->row_of[i] : i);
}

enum { WEIGHTS_PER_TASK = 1024 };

liger_status LIGER_CPU(logprob_weights)(liger_context *context, const struct logprob_weights_problem *problem,
                                        liger_stream stream) {
    (void)stream;
    struct logprob_weights_problem p = *problem;
    liger_parallel_for(context, p.rows, 1 + WEIGHTS_PER_TASK / (1 + p.selected_count), weights_chunk, &p);
    return LIGER_OK;
}

/* ---- the gradient of a slice -------------------------------------------------------------------------------------- */

/* dz of a vector of z, with `by_p` for its elements. */
LIGER_TEMPLATE v_f32 dz_of(bool moments, const struct logits_gradient_row *w, float probability, float by_p, v_f32 z) {
    const v_f32 distance = v_min(v_zero(), v_sub(z, v_set(w->max))); /* logits made again may be rounded up */
    if (!moments) return v_fma(v_exp(distance), v_set(probability * by_p), v_set(w->constant));
    const v_f32 near = v_max(v_set(FARTHEST), distance), p = v_mul(v_exp(near), v_set(probability));
    const v_f32 log_p = v_sub(near, v_set(w->log_sum));
    const v_f32 by = v_fma(v_set(w->by_p_squared), p, v_fma(v_set(w->by_p_log_p), log_p, v_set(by_p)));
    return v_fma(p, by, v_set(w->constant));
}

/* z behind a soft cap, and dz/dlogit. */
LIGER_TEMPLATE v_f32 capped_and_slope(const struct z_map *m, v_f32 logit, v_f32 *slope) {
    v_f32 rest;
    const v_f32 tanh = v_tanh_and_rest(v_mul(logit, v_set(m->inner)), &rest);
    *slope = v_mul(v_set(4.0f * m->slope), v_fnma(rest, rest, rest));
    return v_mul(v_set(m->outer), tanh);
}

/* Adds to dz of a block, which begins at `first` of the vocabulary, what the selected ids get. Few of its ids are selected:
 * a group without any is seen by the sign of all of its heads together. */
V_OUT_OF_LINE void add_selected(const struct logits_gradient_problem *p, const float *upstream, int64_t first,
                                int64_t count, float *dz) {
    enum { GROUP = 64 };
    for (int64_t begin = 0; begin < count; begin += GROUP) {
        const int64_t n = count - begin < GROUP ? count - begin : GROUP;
        const int32_t *heads = p->id_first + first + begin;
        int32_t none = -1;
        for (int64_t i = 0; i < n; i++) none &= heads[i];
        for (int64_t i = 0; none >= 0 && i < n; i++)
            for (int32_t k = heads[i]; k >= 0; k = p->id_next[k]) dz[begin + i] += upstream[k];
    }
}

/* What a row's constant becomes where classes have weights. */
V_OUT_OF_LINE void add_by_class(const float *class_weight, float constant, int64_t count, float *dz) {
    V_FOR_EACH(i, n, count, {
        const v_f32 sum =
            v_fma(v_set(constant), v_load_n(LIGER_F32, class_weight, i, n), v_load_n(LIGER_F32, dz, i, n));
        v_store_n(LIGER_F32, dz, i, n, sum);
    });
}

static bool is_zero(const struct logits_gradient_row *w, const float *selected, int64_t count) {
    bool zero = w->by_p == 0 && w->by_p_log_p == 0 && w->by_p_squared == 0 && w->constant == 0 && w->hit == 0;
    for (int64_t k = 0; zero && selected && k < count; k++) zero = selected[k] == 0;
    return zero;
}

static struct logits_gradient_row without_constant(const struct logits_gradient_row *given) {
    struct logits_gradient_row row = *given;
    row.constant = 0;
    return row;
}

LIGER_TEMPLATE void gradient_row(liger_dtype t, bool moments, bool cap, const struct logits_gradient_problem *p,
                                 const struct z_map *m, const struct logits_gradient_row *given, const float *selected,
                                 char *row) {
    const struct logits_gradient_row plain = without_constant(given), *w = p->class_weight ? &plain : given;
    const float probability = expf(-w->log_sum), by_p = w->by_p - w->hit;
    float dz[VOCAB_BLOCK], slope[VOCAB_BLOCK];
    for (int64_t begin = 0; begin < p->cols; begin += VOCAB_BLOCK) {
        const int64_t count = vocab_block(p->cols, begin), target = w->target - p->first - begin;
        V_FOR_EACH(i, n, count, {
            const v_f32 logit = v_load_n(t, row, begin + i, n);
            v_f32 by = v_zero(), z = cap ? capped_and_slope(m, logit, &by) : mapped(m, logit);
            v_store_n(LIGER_F32, dz, i, n, dz_of(moments, w, probability, by_p, z));
            if (cap) v_store_n(LIGER_F32, slope, i, n, by);
        });
        if (target >= 0 && target < count) {
            const v_f32 z = v_set(mapped_at(t, m, row, begin + target));
            dz[target] = first_lane(dz_of(moments, w, probability, w->by_p, z)) + w->own;
        }
        if (selected) add_selected(p, selected, p->first + begin, count, dz);
        if (p->class_weight) add_by_class(p->class_weight + p->first + begin, given->constant, count, dz);
        V_FOR_EACH(i, n, count, {
            const v_f32 by = cap ? v_load_n(LIGER_F32, slope, i, n) : v_set(m->slope);
            v_store_n(t, row, begin + i, n, v_mul(v_load_n(LIGER_F32, dz, i, n), by));
        });
    }
}

LIGER_TEMPLATE void gradient_of(liger_dtype t, const struct logits_gradient_problem *p, const struct z_map *m,
                                int64_t i) {
    const struct logits_gradient_row *w = &p->weights[i];
    const int64_t r = p->row_of ? p->row_of[i] : i, size = (int64_t)liger_dtype_size(t);
    const float *selected = p->selected ? p->selected + r * p->selected_count : NULL;
    char *row = (char *)p->logits + i * p->logits_stride * size;
    const bool moments = w->by_p_log_p != 0 || w->by_p_squared != 0;
    if (w->target < 0 || is_zero(w, selected, p->selected_count)) memset(row, 0, (size_t)(p->cols * size));
    else if (m->capped) gradient_row(t, true, true, p, m, w, selected, row);
    else if (moments) gradient_row(t, true, false, p, m, w, selected, row);
    else gradient_row(t, false, false, p, m, w, selected, row);
}

static void gradient_chunk(void *argument, int64_t begin, int64_t end) {
    const struct logits_gradient_problem *p = argument;
    const struct z_map m = z_map_of(&p->map);
    for (int64_t i = begin; i < end; i++) LIGER_FOR_FLOAT(p->dtype, gradient_of(LIGER_T, p, &m, i))
}

liger_status LIGER_CPU(logits_gradient)(liger_context *context, const struct logits_gradient_problem *problem,
                                        liger_stream stream) {
    (void)stream;
    struct logits_gradient_problem p = *problem;
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.cols, p.dtype), gradient_chunk, &p);
    return LIGER_OK;
}
