/* cross_entropy_cpu.c - cross entropy on the CPU, compiled once per instruction set. Threads share out the rows.
 *
 * In the first walk over a row each block gives its maximum, then Σ exp. The target's own exponential is kept out of the sum
 * of the others: 1 - p of a confident row is then others/(others + own), which does not cancel. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/targets.h"
#include "liger/cpu/vocab_rows.h"
#include "liger/ops/cross_entropy/cross_entropy_problem.h"

/* ---- count ------------------------------------------------------------------------------------------------------ */

liger_status LIGER_CPU(cross_entropy_count)(liger_context *context, const struct cross_entropy_count_problem *p,
                                            liger_stream stream) {
    (void)context, (void)stream;
    double weight_sum = 0, class_total = 0;
    int64_t valid = 0;
    for (int64_t r = 0; r < p->rows; r++) {
        const int64_t y = index_load(p->target_dtype, p->target, r);
        if (y == p->ignore_index) continue;
        if (!p->any_label) LIGER_TRY(target_check(p->op, r, y, p->vocab, p->ignore_index));
        valid++;
        if (p->weight) weight_sum += (double)p->weight[y];
    }
    if (p->weight)
        for (int64_t j = 0; j < p->vocab; j++) class_total += (double)p->weight[j];
    *p->counts = (struct cross_entropy_counts){
        .valid = (float)valid,
        .weight_sum = p->weight ? (float)weight_sum : (float)valid,
        .class_total = (float)class_total,
    };
    return LIGER_OK;
}

/* ---- rows: what one row knows ------------------------------------------------------------------------------------- */

struct row {
    struct softmax_state others; /* over all classes but the target, relative to the maximum over all */
    float target;                /* logit of the target, soft-capped */
    float base;                  /* what Σ x is taken relative to: a common offset of all logits does not cancel */
    float shape;                 /* Σ_j w_j (x_j - base), with label smoothing only */
};

LIGER_TEMPLATE float capped_at(liger_dtype t, const void *logits, int64_t i, bool cap, float softcap) {
    float lanes[V_LANES];
    v_store_f32(lanes, vocab_capped(v_set(f32_load(t, logits, i)), cap, v_set(softcap)));
    return lanes[0];
}

/* Σ w (x - base) of a block; weight may be NULL. */
LIGER_TEMPLATE float shape_of_block(const float *block, const float *weight, int64_t count, float base) {
    v_f32 sum = v_zero();
    float rest = 0.0f;
    int64_t i = 0;
    for (; i + V_LANES <= count; i += V_LANES) {
        const v_f32 x = v_sub(v_load_f32(block + i), v_set(base));
        sum = v_add(sum, weight ? v_mul(x, v_load_f32(weight + i)) : x);
    }
    for (; i < count; i++) rest += (weight ? weight[i] : 1.0f) * (block[i] - base);
    return v_sum(sum) + rest;
}

LIGER_TEMPLATE struct row read_row(liger_dtype t, bool options, const struct cross_entropy_rows_problem *p,
                                   const void *logits, int64_t y) {
    const bool cap = options && p->softcap > 0, smooth = options && p->label_smoothing > 0;
    float block[VOCAB_BLOCK + V_LANES];
    const float first = capped_at(t, logits, 0, cap, p->softcap);
    struct row row = {
        .others = softmax_empty(),
        .target = y >= 0 && y < p->vocab ? capped_at(t, logits, y, cap, p->softcap) : -INFINITY,
        .base = isfinite(first) ? first : 0.0f,
    };
    for (int64_t begin = 0; begin < p->vocab; begin += VOCAB_BLOCK) {
        const int64_t count = vocab_block(p->vocab, begin);
        const float most = vocab_widen(t, logits, begin, count, cap, p->softcap, block);
        if (smooth) row.shape += shape_of_block(block, p->weight ? p->weight + begin : NULL, count, row.base);
        if (y >= begin && y < begin + count) block[y - begin] = -INFINITY;
        row.others = softmax_push(row.others, block, (count + V_LANES - 1) / V_LANES * V_LANES, most);
    }
    return row;
}

/* Smallest index of the maximum; 0 if nothing equals it (all -inf or NaN). */
LIGER_TEMPLATE int64_t first_max(liger_dtype t, const struct cross_entropy_rows_problem *p, const void *logits,
                                 float max) {
    const bool cap = p->softcap > 0;
    float block[VOCAB_BLOCK + V_LANES];
    for (int64_t begin = 0; begin < p->vocab; begin += VOCAB_BLOCK) {
        const int64_t count = vocab_block(p->vocab, begin);
        if (vocab_widen(t, logits, begin, count, cap, p->softcap, block) < max) continue;
        for (int64_t i = 0; i < count; i++)
            if (block[i] == max) return begin + i;
    }
    return 0;
}

/* ---- rows: loss and gradient -------------------------------------------------------------------------------------- */

/* dlogits[j] = (exp(x[j] - max) · probability - uniform · w[j]) · (1 - (x[j]/softcap)²), but for the target's own. */
struct gradient {
    float max, probability, uniform;
};

LIGER_TEMPLATE void write_gradient(liger_dtype t, bool options, const struct cross_entropy_rows_problem *p,
                                   const void *logits, void *dlogits, const struct gradient *g) {
    const bool cap = options && p->softcap > 0, smooth = options && p->label_smoothing > 0;
    const v_f32 max = v_set(g->max), probability = v_set(g->probability), uniform = v_set(g->uniform);
    V_FOR_EACH(i, n, p->vocab, {
        const v_f32 x = vocab_capped(v_load_n(t, logits, i, n), cap, v_set(p->softcap));
        v_f32 d = v_mul(v_exp(v_sub(x, max)), probability);
        if (smooth) d = v_fnma(uniform, p->weight ? v_load_n(LIGER_F32, p->weight, i, n) : v_set(1.0f), d);
        if (cap) {
            const v_f32 ratio = v_div(x, v_set(p->softcap));
            d = v_mul(d, v_fnma(ratio, ratio, v_set(1.0f)));
        }
        v_store_n(t, dlogits, i, n, d);
    });
}

LIGER_TEMPLATE void fill_row(liger_dtype t, void *row, int64_t vocab, float value) {
    V_FOR_EACH(i, n, vocab, v_store_n(t, row, i, n, v_set(value)));
}

static void write_results(const struct cross_entropy_rows_problem *p, int64_t r, float loss, float z, float accuracy,
                          int64_t predicted, struct logits_gradient_row gradient) {
    if (p->loss) p->loss[r] = loss;
    if (p->z_loss) p->z_loss[r] = z;
    if (p->accuracy) p->accuracy[r] = accuracy;
    if (p->predicted) p->predicted[r] = predicted;
    if (p->gradient) p->gradient[r] = gradient;
}

LIGER_TEMPLATE void one_row(liger_dtype t, bool options, const struct cross_entropy_rows_problem *p, int64_t r) {
    const int64_t element = (int64_t)liger_dtype_size(t), y = index_load(p->target_dtype, p->target, r);
    const char *logits = (const char *)p->logits + r * p->logits_stride * element;
    char *dlogits = p->dlogits ? (char *)p->dlogits + r * p->dlogits_stride * element : NULL;
    if (y == p->ignore_index) {
        write_results(p, r, 0.0f, 0.0f, 0.0f, -1, (struct logits_gradient_row){.target = -1});
        if (dlogits) fill_row(t, dlogits, p->vocab, 0.0f);
        return;
    }
    const struct row row = read_row(t, options, p, logits, y);
    const int64_t predicted = p->accuracy || p->predicted ? first_max(t, p, logits, row.others.max) : 0;
    if (y < 0 || y >= p->vocab) {
        write_results(p, r, NAN, NAN, 0.0f, predicted, (struct logits_gradient_row){.by_p = NAN});
        if (dlogits) fill_row(t, dlogits, p->vocab, NAN);
        return;
    }
    /* Everything relative to the maximum: lse - x[y] = (max - x[y]) + log sum. */
    const float own = expf(row.target - row.others.max), sum = row.others.sum + own;
    const float log_sum = row.target == row.others.max ? log1pf(row.others.sum) : logf(sum);
    const float lse = row.others.max + log_sum, a = options ? p->label_smoothing : 0.0f;
    const float e = a / (float)p->vocab, total = p->weight ? p->counts->class_total : (float)p->vocab;
    const float weight = p->weight ? p->weight[y] : 1.0f, token = p->token_scaling ? own / sum : 1.0f;
    const float by_weight = p->mean ? 1.0f / p->counts->weight_sum : 1.0f;
    const float by_count = p->mean ? 1.0f / p->counts->valid : 1.0f;
    const float z = p->lse_square_scale * lse * lse * by_count * token;
    float loss = (1.0f - a) * weight * ((row.others.max - row.target) + log_sum) * by_weight;
    if (a > 0) loss += e * (((row.others.max - row.base) + log_sum) * total - row.shape) * by_weight;
    const float upstream = (p->upstream ? p->upstream[r * p->upstream_stride] : 1.0f) * token;
    const float ce = upstream * (p->raw_gradient ? 1.0f : by_weight);
    const float zs =
        upstream * (p->raw_gradient ? (p->mean ? p->counts->weight_sum / p->counts->valid : 1.0f) : by_count);
    const float hit = ce * weight * (1.0f - a), spread = ce * e * total + zs * 2.0f * p->lse_square_scale * lse;
    const struct gradient g = {.max = row.others.max, .probability = (hit + spread) / sum, .uniform = ce * e};
    const struct logits_gradient_row later = {
        .max = row.others.max,
        .log_sum = log_sum,
        .by_p = spread,
        .constant = -g.uniform,
        .hit = -hit,
        .own = -hit * (row.others.sum / sum),
        .target = y,
    };
    write_results(p, r, loss * token + z, z, predicted == y ? 1.0f : 0.0f, predicted, later);
    if (dlogits == NULL) return;
    write_gradient(t, options, p, logits, dlogits, &g);
    float d = (own * spread - row.others.sum * hit) / sum;
    if (a > 0) d -= g.uniform * weight;
    if (options && p->softcap > 0) d *= 1.0f - (row.target / p->softcap) * (row.target / p->softcap);
    f32_store(t, dlogits, y, d);
}

static void rows_chunk(void *argument, int64_t begin, int64_t end) {
    const struct cross_entropy_rows_problem *p = argument;
    const bool options = p->softcap > 0 || p->label_smoothing > 0;
    for (int64_t r = begin; r < end; r++) {
        if (options) LIGER_FOR_FLOAT(p->dtype, one_row(LIGER_T, true, p, r))
        else LIGER_FOR_FLOAT(p->dtype, one_row(LIGER_T, false, p, r))
    }
}

liger_status LIGER_CPU(cross_entropy_rows)(liger_context *context, const struct cross_entropy_rows_problem *problem,
                                           liger_stream stream) {
    (void)stream;
    struct cross_entropy_rows_problem p = *problem;
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.vocab, p.dtype), rows_chunk, &p);
    return LIGER_OK;
}

/* ---- reduce ------------------------------------------------------------------------------------------------------- */

static double sum_of(const float *values, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)values[i];
    return sum;
}

static void reduce_one(const float *values, int64_t rows, bool unreduced, void *out, liger_dtype dtype) {
    if (values == NULL || out == NULL) return;
    if (!unreduced) f32_store(dtype, out, 0, (float)sum_of(values, rows));
    else
        for (int64_t r = 0; r < rows; r++) f32_store(dtype, out, r, values[r]);
}

liger_status LIGER_CPU(cross_entropy_reduce)(liger_context *context, const struct cross_entropy_reduce_problem *p,
                                             liger_stream stream) {
    (void)context, (void)stream;
    reduce_one(p->loss, p->rows, p->unreduced, p->loss_out, p->loss_dtype);
    reduce_one(p->z_loss, p->rows, p->unreduced, p->z_loss_out, p->z_loss_dtype);
    if (p->accuracy == NULL || p->accuracy_out == NULL) return LIGER_OK;
    reduce_one(p->accuracy, p->rows, p->unreduced, p->accuracy_out, LIGER_F32);
    if (!p->unreduced) *p->accuracy_out = p->rows > 0 ? *p->accuracy_out / p->counts->valid : 0.0f;
    return LIGER_OK;
}
