/* logprob_cpu.c - log-probabilities on a head: the statistics of rows of logits, and the gradient of a slice of them.
 * Compiled once per instruction set. Threads share out the rows.
 *
 * Everything is relative to the largest z of a row, and the target's own exponential is kept out of the sums over the others:
 * what is left of a confident row is then log1p(others), which does not cancel. */
#include "liger/core/fail.h"
#include "liger/core/kernel_table.h"
#include "liger/cpu/vocab_rows.h"
#include "liger/ops/logprob/logprob_problem.h"

/* ---- ids ---------------------------------------------------------------------------------------------------------- */

liger_status LIGER_CPU(logprob_ids)(liger_context *context, const struct logprob_ids_problem *p, liger_stream stream) {
    (void)context, (void)stream;
    for (int64_t k = 0; k < p->count; k++) {
        const int64_t id = index_load(p->dtype, p->ids, k);
        LIGER_REQUIRE(id >= 0 && id < p->vocab, LIGER_ERR_TARGET,
                      "%s: selected_ids[%lld] is %lld, which is out of bounds: it must be in [0, %lld)", p->op,
                      (long long)k, (long long)id, (long long)p->vocab);
    }
    if (p->first == NULL) return LIGER_OK;
    for (int64_t j = 0; j < p->vocab; j++) p->first[j] = -1;
    for (int64_t k = p->count - 1; k >= 0; k--) {
        const int64_t id = index_load(p->dtype, p->ids, k);
        p->next[k] = p->first[id];
        p->first[id] = (int32_t)k;
    }
    return LIGER_OK;
}

/* ---- from a logit to z -------------------------------------------------------------------------------------------- */

/* z = outer·tanh(inner·logit), or inner·logit without a soft cap; dz/dlogit = slope·(1 - tanh²). */
struct map {
    bool cap, same; /* same: z is the logit */
    float inner, outer, slope;
};

static struct map map_of(const struct logit_map *m) {
    const double scale = (double)m->scale, softcap = (double)m->softcap, temperature = (double)m->temperature;
    const bool cap = softcap > 0;
    return (struct map){
        .cap = cap,
        .same = !cap && scale == temperature,
        .inner = (float)(scale / (cap ? softcap : temperature)),
        .outer = (float)(softcap / temperature),
        .slope = (float)(scale / temperature),
    };
}

LIGER_TEMPLATE v_f32 mapped(const struct map *m, v_f32 logit) {
    const v_f32 x = v_mul(logit, v_set(m->inner));
    return m->cap ? v_mul(v_set(m->outer), v_tanh(x)) : x;
}

LIGER_TEMPLATE float first_lane(v_f32 x) {
    float lanes[V_LANES];
    v_store_f32(lanes, x);
    return lanes[0];
}

LIGER_TEMPLATE float mapped_at(liger_dtype t, const struct map *m, const void *logits, int64_t j) {
    return first_lane(mapped(m, v_set(f32_load(t, logits, j))));
}

/* Logits of a block become z, padded with -inf to whole vectors; returns the largest. */
V_OUT_OF_LINE float map_block(const struct map *m, float *block, int64_t count) {
    v_f32 most = v_set(-FLT_MAX);
    for (int64_t i = 0; i < count; i += V_LANES) {
        v_store_f32(block + i, mapped(m, v_load_f32(block + i)));
        for (int64_t l = count; l < i + V_LANES; l++) block[l] = -INFINITY;
        most = v_max(v_load_f32(block + i), most);
    }
    return v_max_across(most);
}

/* ---- rows: what one row knows ------------------------------------------------------------------------------------- */

/* Nothing is left of e^x in f32 below this: a distance from the maximum stays finite, so that 0 times it is 0. */
#define FARTHEST (-200.0f)

static float bounded(float distance) { return distance < FARTHEST ? FARTHEST : distance; } /* NaN stays */

struct row {
    struct softmax_state others; /* over all classes but the target, relative to the maximum over all */
    float weighted, squares; /* Σ e·(z - max) and Σ e² of the others, e = exp(z - max); where they are asked for */
    float target;            /* z of the target */
    double total;            /* Σ z, where it is asked for */
};

/* softmax_push, and the other two sums. */
LIGER_TEMPLATE void push_moments(struct row *row, const float *block, int64_t count, float most) {
    const float max = most > row->others.max ? most : row->others.max, step = row->others.max - max;
    const float kept = expf(step);
    v_f32 sum[2] = {v_zero(), v_zero()}, weighted[2] = {v_zero(), v_zero()}, squares[2] = {v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 2, count, {
        const v_f32 d = v_max(v_set(FARTHEST), v_sub(v_load_f32(block + i), v_set(max))), e = v_exp(d);
        sum[k] = v_add(sum[k], e);
        weighted[k] = v_fma(e, d, weighted[k]);
        squares[k] = v_fma(e, e, squares[k]);
        (void)n;
    });
    row->weighted = kept * (row->weighted + bounded(step) * row->others.sum) + v_sum(v_add(weighted[0], weighted[1]));
    row->squares = kept * kept * row->squares + v_sum(v_add(squares[0], squares[1]));
    row->others = (struct softmax_state){max, kept * row->others.sum + v_sum(v_add(sum[0], sum[1]))};
}

/* Σ z of a block: few enough that their sum in f32 is off by a few u of the largest; the sum of blocks is in double. */
LIGER_TEMPLATE float sum_of_block(const float *block, int64_t count) {
    v_f32 sum[2] = {v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 2, count, sum[k] = v_add(sum[k], v_load_n(LIGER_F32, block, i, n)));
    return v_sum(v_add(sum[0], sum[1]));
}

LIGER_TEMPLATE struct row read_row(liger_dtype t, const struct logprob_rows_problem *p, const struct map *m,
                                   const void *logits, int64_t y) {
    const bool moments = p->results.entropy || p->results.log_sum_sq_probs, mean = p->results.mean_logits != NULL;
    float block[VOCAB_BLOCK + V_LANES];
    struct row row = {.others = softmax_empty(), .target = mapped_at(t, m, logits, y)};
    for (int64_t begin = 0; begin < p->vocab; begin += VOCAB_BLOCK) {
        const int64_t count = vocab_block(p->vocab, begin), padded = (count + V_LANES - 1) / V_LANES * V_LANES;
        float most = vocab_widen(t, logits, begin, count, false, 0.0f, block);
        if (!m->same) most = map_block(m, block, count);
        if (mean) row.total += (double)sum_of_block(block, count);
        if (y >= begin && y < begin + count) block[y - begin] = -INFINITY;
        if (moments) push_moments(&row, block, padded, most);
        else row.others = softmax_push(row.others, block, padded, most);
    }
    return row;
}

/* Whether every logit before the target is smaller, and none behind it larger; `sign` -1: whether larger, and none smaller.
 * Logits, not z: those may be equal where a soft cap has rounded them to one value. */
LIGER_TEMPLATE bool is_first_max(liger_dtype t, const void *logits, int64_t vocab, int64_t y, float sign) {
    const v_f32 by = v_set(sign), own = v_set(sign * f32_load(t, logits, y));
    V_FOR_EACH(i, n, y, {
        const uint32_t all = (1u << n) - 1, less = v_bits_of(v_less(v_mul(by, v_load_n(t, logits, i, n)), own));
        if ((less & all) != all) return false;
    });
    V_FOR_EACH(i, n, vocab - y - 1, {
        const uint32_t all = (1u << n) - 1;
        if (v_bits_of(v_less(own, v_mul(by, v_load_n(t, logits, y + 1 + i, n)))) & all) return false;
    });
    return true;
}

/* ---- rows: results ------------------------------------------------------------------------------------------------ */

/* log p of the selected ids: V_LANES logits are fetched from wherever they are. */
LIGER_TEMPLATE void write_selected(liger_dtype t, const struct logprob_rows_problem *p, const struct map *m,
                                   const void *logits, float max, float log_sum, float *out) {
    V_FOR_EACH(i, n, p->selected_count, {
        float few[V_LANES] = {0};
        for (int l = 0; l < n; l++) few[l] = f32_load(t, logits, index_load(p->selected_dtype, p->selected_ids, i + l));
        const v_f32 z = mapped(m, v_load_f32(few));
        v_store_n(LIGER_F32, out, i, n, v_sub(v_sub(z, v_set(max)), v_set(log_sum)));
    });
}

static void write_zeros(const struct logprob_results *to, int64_t selected_count, int64_t r) {
    if (to->log_prob) to->log_prob[r] = 0.0f;
    if (to->entropy) to->entropy[r] = 0.0f;
    if (to->lse) to->lse[r] = 0.0f;
    if (to->log_sum_sq_probs) to->log_sum_sq_probs[r] = 0.0f;
    if (to->mean_logits) to->mean_logits[r] = 0.0f;
    if (to->is_top1) to->is_top1[r] = 0;
    if (to->normalizer) to->normalizer[2 * r] = to->normalizer[2 * r + 1] = 0.0f;
    for (int64_t k = 0; to->selected && k < selected_count; k++) to->selected[r * selected_count + k] = 0.0f;
}

LIGER_TEMPLATE void one_row(liger_dtype t, const struct logprob_rows_problem *p, const struct map *m, int64_t i) {
    const int64_t r = p->row_of ? p->row_of[p->first + i] : p->first + i;
    const int64_t y = index_load(p->target_dtype, p->target, r);
    const char *logits = (const char *)p->logits + i * p->logits_stride * (int64_t)liger_dtype_size(t);
    const struct logprob_results *to = &p->results;
    if (y == p->ignore_index) {
        write_zeros(to, p->selected_count, r);
        return;
    }
    const struct row row = read_row(t, p, m, logits, y);
    const float max = row.others.max, distance = row.target - max, own = expf(distance), sum = row.others.sum + own;
    const bool sure = row.target == max;
    const float log_sum = sure ? log1pf(row.others.sum) + distance : logf(sum); /* NaN: the target's z is infinite */
    if (to->log_prob) to->log_prob[r] = distance - log_sum;
    if (to->entropy) to->entropy[r] = log_sum - (row.weighted + own * bounded(distance)) / sum;
    if (to->lse) to->lse[r] = max + log_sum;
    if (to->log_sum_sq_probs)
        to->log_sum_sq_probs[r] = (sure ? log1pf(row.squares) : logf(row.squares + own * own)) - 2.0f * log_sum;
    if (to->mean_logits) to->mean_logits[r] = (float)(row.total / (double)p->vocab);
    if (to->is_top1) {
        const float sign = m->slope > 0 ? 1.0f : m->slope < 0 ? -1.0f : 0.0f;
        to->is_top1[r] = sure && !isnan(log_sum) && is_first_max(t, logits, p->vocab, y, sign);
    }
    if (to->normalizer) to->normalizer[2 * r] = max, to->normalizer[2 * r + 1] = log_sum;
    if (to->selected) write_selected(t, p, m, logits, max, log_sum, to->selected + r * p->selected_count);
}

static void rows_chunk(void *argument, int64_t begin, int64_t end) {
    const struct logprob_rows_problem *p = argument;
    const struct map m = map_of(&p->map);
    for (int64_t i = begin; i < end; i++) LIGER_FOR_FLOAT(p->dtype, one_row(LIGER_T, p, &m, i))
}

liger_status LIGER_CPU(logprob_rows)(liger_context *context, const struct logprob_rows_problem *problem,
                                     liger_stream stream) {
    (void)stream;
    struct logprob_rows_problem p = *problem;
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.vocab, p.dtype), rows_chunk, &p);
    return LIGER_OK;
}

liger_status LIGER_CPU(logprob_ignored)(liger_context *context, const struct logprob_ignored_problem *p,
                                        liger_stream stream) {
    (void)context, (void)stream;
    for (int64_t r = 0; r < p->rows; r++)
        if (p->place_of[r] < 0) write_zeros(&p->results, p->selected_count, r);
    return LIGER_OK;
}

/* ---- weights ------------------------------------------------------------------------------------------------------ */

static float upstream_of(const float *upstream, int64_t r) { return upstream ? upstream[r] : 0.0f; }

static struct logits_gradient_row weigh(const struct logprob_weights_problem *p, int64_t r) {
    const int64_t y = index_load(p->target_dtype, p->target, r);
    const struct logprob_upstreams *up = &p->upstream;
    if (y == p->ignore_index) return (struct logits_gradient_row){.target = -1};
    const float hit = upstream_of(up->log_prob, r), entropy = upstream_of(up->entropy, r);
    const float squares = upstream_of(up->log_sum_sq_probs, r);
    struct logits_gradient_row row = {
        .max = p->normalizer[2 * r],
        .log_sum = p->normalizer[2 * r + 1],
        .by_p = upstream_of(up->lse, r),
        .constant = upstream_of(up->mean_logits, r) / (float)p->vocab,
        .hit = hit,
        .own = up->log_prob ? hit * -expm1f(p->log_prob[r]) : 0.0f,
        .target = y,
    };
    if (up->entropy) {
        row.by_p -= entropy * p->entropy[r];
        row.by_p_log_p = -entropy;
    }
    if (up->log_sum_sq_probs) {
        row.by_p -= 2.0f * squares;
        row.by_p_squared = 2.0f * squares * expf(-p->log_sum_sq_probs[r]);
    }
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
LIGER_TEMPLATE v_f32 capped_and_slope(const struct map *m, v_f32 logit, v_f32 *slope) {
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
                                 const struct map *m, const struct logits_gradient_row *given, const float *selected,
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

LIGER_TEMPLATE void gradient_of(liger_dtype t, const struct logits_gradient_problem *p, const struct map *m,
                                int64_t i) {
    const struct logits_gradient_row *w = &p->weights[i];
    const int64_t r = p->row_of ? p->row_of[i] : i, size = (int64_t)liger_dtype_size(t);
    const float *selected = p->selected ? p->selected + r * p->selected_count : NULL;
    char *row = (char *)p->logits + i * p->logits_stride * size;
    const bool moments = w->by_p_log_p != 0 || w->by_p_squared != 0;
    if (w->target < 0 || is_zero(w, selected, p->selected_count)) memset(row, 0, (size_t)(p->cols * size));
    else if (m->cap) gradient_row(t, true, true, p, m, w, selected, row);
    else if (moments) gradient_row(t, true, false, p, m, w, selected, row);
    else gradient_row(t, false, false, p, m, w, selected, row);
}

static void gradient_chunk(void *argument, int64_t begin, int64_t end) {
    const struct logits_gradient_problem *p = argument;
    const struct map m = map_of(&p->map);
    for (int64_t i = begin; i < end; i++) LIGER_FOR_FLOAT(p->dtype, gradient_of(LIGER_T, p, &m, i))
}

liger_status LIGER_CPU(logits_gradient)(liger_context *context, const struct logits_gradient_problem *problem,
                                        liger_stream stream) {
    (void)stream;
    struct logits_gradient_problem p = *problem;
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.cols, p.dtype), gradient_chunk, &p);
    return LIGER_OK;
}
