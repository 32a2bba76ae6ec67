/* logprob_cpu.c - the statistics of rows of logits on the CPU, compiled once per instruction set. Threads share out the rows.
 *
 * Everything is relative to the largest z of a row, and the target's own exponential is kept out of the sums over the others:
 * what is left of a confident row is then log1p(others), which does not cancel. */
#include "liger/core/fail.h"
#include "liger/core/kernel_table.h"
#include "liger/ops/logprob/logprob_map_cpu.h"

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

/* ---- rows: what one row knows ------------------------------------------------------------------------------------- */

/* Logits of a block become z, padded with -inf to whole vectors; returns the largest. */
V_OUT_OF_LINE float map_block(const struct z_map *m, float *block, int64_t count) {
    v_f32 most = v_set(-FLT_MAX);
    for (int64_t i = 0; i < count; i += V_LANES) {
        v_store_f32(block + i, mapped(m, v_load_f32(block + i)));
        for (int64_t l = count; l < i + V_LANES; l++) block[l] = -INFINITY;
        most = v_max(v_load_f32(block + i), most);
    }
    return v_max_across(most);
}

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

LIGER_TEMPLATE struct row read_row(liger_dtype t, const struct logprob_rows_problem *p, const struct z_map *m,
                                   const void *logits, int64_t y) {
    const bool same = !m->capped && m->inner == 1.0f; /* z is the logit */
    const bool moments = p->results.entropy || p->results.log_sum_sq_probs, mean = p->results.mean_logits != NULL;
    float block[VOCAB_BLOCK + V_LANES];
    struct row row = {.others = softmax_empty(), .target = mapped_at(t, m, logits, y)};
    for (int64_t begin = 0; begin < p->vocab; begin += VOCAB_BLOCK) {
        const int64_t count = vocab_block(p->vocab, begin), padded = (count + V_LANES - 1) / V_LANES * V_LANES;
        float most = vocab_widen(t, logits, begin, count, false, 0.0f, block);
        if (!same) most = map_block(m, block, count);
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
LIGER_TEMPLATE void write_selected(liger_dtype t, const struct logprob_rows_problem *p, const struct z_map *m,
                                   const void *logits, float max, float log_sum, float *out) {
    V_FOR_EACH(i, n, p->selected_count, {
        float few[V_LANES] = {0};
        for (int l = 0; l < n; l++) few[l] = f32_load(t, logits, index_load(p->selected_dtype, p->selected_ids, i + l));
        const v_f32 z = mapped(m, v_load_f32(few));
        v_store_n(LIGER_F32, out, i, n, v_sub(v_sub(z, v_set(max)), v_set(log_sum)));
    });
}

static void write_zeros(const struct logprob_results *to, int64_t selected_count, int64_t r) {
    logprob_fill(to, r, 0.0f);
    for (int64_t k = 0; to->selected && k < selected_count; k++) to->selected[r * selected_count + k] = 0.0f;
}

/* All that the sums over a row say. */
LIGER_TEMPLATE void write_row(liger_dtype t, const struct logprob_rows_problem *p, const struct z_map *m,
                              const void *logits, const struct row *row, int64_t y, int64_t r) {
    const struct logprob_results *to = &p->results;
    const float max = row->others.max, distance = row->target - max, own = expf(distance), sum = row->others.sum + own;
    const bool sure = row->target == max;
    const float log_sum = sure ? log1pf(row->others.sum) + distance : logf(sum); /* NaN: the target's z is infinite */
    if (to->log_prob) to->log_prob[r] = distance - log_sum;
    if (to->entropy) to->entropy[r] = log_sum - (row->weighted + own * bounded(distance)) / sum;
    if (to->lse) to->lse[r] = max + log_sum;
    if (to->log_sum_sq_probs)
        to->log_sum_sq_probs[r] = (sure ? log1pf(row->squares) : logf(row->squares + own * own)) - 2.0f * log_sum;
    if (to->mean_logits) to->mean_logits[r] = (float)(row->total / (double)p->vocab);
    if (to->is_top1) {
        const float sign = m->slope > 0 ? 1.0f : m->slope < 0 ? -1.0f : 0.0f;
        to->is_top1[r] = sure && !isnan(log_sum) && is_first_max(t, logits, p->vocab, y, sign);
    }
    if (to->normalizer) to->normalizer[2 * r] = max, to->normalizer[2 * r + 1] = log_sum;
    if (to->selected) write_selected(t, p, m, logits, max, log_sum, to->selected + r * p->selected_count);
}

LIGER_TEMPLATE void one_row(liger_dtype t, const struct logprob_rows_problem *p, const struct z_map *m, int64_t i) {
    const int64_t r = p->row_of ? p->row_of[p->first + i] : p->first + i;
    const int64_t y = index_load(p->target_dtype, p->target, r);
    const char *logits = (const char *)p->logits + i * p->logits_stride * (int64_t)liger_dtype_size(t);
    if (y == p->ignore_index) {
        write_zeros(&p->results, p->selected_count, r);
        return;
    }
    const struct row row = read_row(t, p, m, logits, y);
    write_row(t, p, m, logits, &row, y, r);
}

static void rows_chunk(void *argument, int64_t begin, int64_t end) {
    const struct logprob_rows_problem *p = argument;
    const struct z_map m = z_map_of(&p->map);
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
