/* linear_topk_kl_cpu.c - rows of a divergence from listed ids on the CPU, compiled once per instruction set. Threads share out the
 * rows. */
#include "liger/core/fail.h"
#include "liger/core/kernel_table.h"
#include "liger/cpu/vocab_rows.h"
#include "liger/ops/linear_topk_kl/linear_topk_kl_problem.h"

/* One row: its logits, its list, and what has been taken of it. */
struct one_row {
    char *logits, *taken;
    int64_t ids, logprobs; /* where its lists begin */
};

static int64_t id_of(const struct linear_topk_kl_problem *p, const struct one_row *row, int64_t i) {
    return index_load(p->id_dtype, p->ids, row->ids + i);
}

/* Copies the logits at the ids aside and leaves -inf. False: an id stands twice; in between NaN is in the places of those that have
 * been looked at. (A logit of NaN makes NaN of the row anyway.) */
LIGER_TEMPLATE bool take(liger_dtype t, const struct linear_topk_kl_problem *p, const struct one_row *row) {
    bool distinct = true;
    for (int64_t i = 0; i < p->k; i++) {
        const int64_t id = id_of(p, row, i);
        f32_store(t, row->taken, i, id < 0 ? -INFINITY : f32_load(t, row->logits, id));
    }
    for (int64_t i = 0; i < p->k; i++) {
        const int64_t id = id_of(p, row, i);
        if (id < 0) continue;
        distinct &= !isnan(f32_load(t, row->logits, id)) || isnan(f32_load(t, row->taken, i));
        f32_store(t, row->logits, id, NAN);
    }
    for (int64_t i = 0; i < p->k; i++) {
        const int64_t id = id_of(p, row, i);
        if (id >= 0) f32_store(t, row->logits, id, -INFINITY);
    }
    return distinct;
}

/* Of the list, up to VOCAB_BLOCK from `begin`: z and log q, padded to whole vectors, both -inf where there is nothing. */
struct entries {
    int64_t count; /* a multiple of V_LANES */
    float z[VOCAB_BLOCK + V_LANES], log_q[VOCAB_BLOCK + V_LANES];
};

LIGER_TEMPLATE void read_entries(liger_dtype t, const struct linear_topk_kl_problem *p, const struct one_row *row,
                                 int64_t begin, struct entries *to) {
    const int64_t count = vocab_block(p->k, begin);
    to->count = (count + V_LANES - 1) / V_LANES * V_LANES;
    for (int64_t i = 0; i < to->count; i++) {
        const bool there = i < count && id_of(p, row, begin + i) >= 0;
        to->z[i] = there ? f32_load(t, row->taken, begin + i) * p->inverse : -INFINITY;
        to->log_q[i] = there ? f32_load(p->logprob_dtype, p->logprobs, row->logprobs + begin + i) : -INFINITY;
    }
}

LIGER_TEMPLATE float largest(liger_dtype t, const struct linear_topk_kl_problem *p, const struct one_row *row) {
    float most = -FLT_MAX;
    for (int64_t i = 0; i < p->k; i++) {
        const float z = f32_load(t, row->taken, i) * p->inverse;
        if (z > most) most = z;
    }
    return most;
}

/* Adds what entries come to, relative to listed->max. */
static void add_entries(const struct entries *from, struct linear_topk_kl_listed *listed,
                        struct linear_topk_kl_mass *mass) {
    const v_f32 max = v_set(listed->max), zero = v_zero(), sure = v_set(LINEAR_TOPK_KL_SURE);
    v_f32 sum = zero, cross = zero, below = zero, entropy = zero;
    for (int64_t i = 0; i < from->count; i += V_LANES) {
        const v_f32 z = v_sub(v_load_f32(from->z + i), max), log_q = v_load_f32(from->log_q + i), q = v_exp(log_q);
        const v_mask none = v_less(q, v_set(FLT_MIN)); /* 0, whatever it is multiplied by */
        sum = v_add(sum, v_exp(z));
        cross = v_add(cross, v_select(none, zero, v_mul(q, v_sub(log_q, z))));
        entropy = v_add(entropy, v_select(none, zero, v_mul(q, v_max(v_sub(zero, log_q), zero))));
        below = v_add(below, v_select(v_less(sure, log_q), zero, q));
    }
    listed->sum += v_sum(sum);
    listed->cross += v_sum(cross);
    mass->below += v_sum(below);
    mass->entropy += v_sum(entropy);
    for (int64_t i = 0; i < from->count; i++)
        if (from->log_q[i] > LINEAR_TOPK_KL_SURE) mass->sure += 1, mass->above += expm1f(from->log_q[i]);
}

LIGER_TEMPLATE struct linear_topk_kl_listed sum_up(liger_dtype t, const struct linear_topk_kl_problem *p,
                                                   const struct one_row *row, bool distinct) {
    struct linear_topk_kl_listed listed = {.max = largest(t, p, row)};
    struct linear_topk_kl_mass mass = {0, 0, 0, 0};
    struct entries entries;
    for (int64_t begin = 0; begin < p->k; begin += VOCAB_BLOCK) {
        read_entries(t, p, row, begin, &entries);
        add_entries(&entries, &listed, &mass);
    }
    linear_topk_kl_rest(&listed, mass, p->logprob_dtype, !distinct);
    return listed;
}

/* The gradient at the ids: p·share - q, where z - max makes p. */
LIGER_TEMPLATE void put(liger_dtype t, const struct linear_topk_kl_problem *p, const struct one_row *row, float max,
                        float share, float factor) {
    struct entries entries;
    for (int64_t begin = 0; begin < p->k; begin += VOCAB_BLOCK) {
        read_entries(t, p, row, begin, &entries);
        for (int64_t i = 0; i < entries.count; i += V_LANES) {
            const v_f32 z = v_sub(v_load_f32(entries.z + i), v_set(max)), q = v_exp(v_load_f32(entries.log_q + i));
            v_store_f32(entries.z + i, v_mul(v_sub(v_mul(v_exp(z), v_set(share)), q), v_set(factor)));
        }
        const int64_t count = vocab_block(p->k, begin);
        for (int64_t i = 0; i < count; i++) {
            const int64_t id = id_of(p, row, begin + i);
            if (id >= 0) f32_store(t, row->logits, id, entries.z[i]);
        }
    }
}

/* A row that counts. */
LIGER_TEMPLATE void row_of_type(liger_dtype t, const struct linear_topk_kl_problem *p, int64_t r) {
    const int64_t element = (int64_t)liger_dtype_size(t);
    const struct one_row row = {
        .logits = (char *)p->logits + r * p->logits_stride * element,
        .taken = (char *)p->taken + r * p->k * element,
        .ids = r * p->ids_stride,
        .logprobs = r * p->logprobs_stride,
    };
    const struct linear_topk_kl_listed listed = sum_up(t, p, &row, take(t, p, &row));
    const struct softmax_state outside = vocab_softmax(t, row.logits, p->vocab, p->inverse);
    const float max = outside.max > listed.max ? outside.max : listed.max, weight = row_weight(&p->counted);
    const float of_outside = outside.sum * expf(outside.max - max),
                sum = of_outside + listed.sum * expf(listed.max - max);
    const float rest = linear_topk_kl_rest_of(&listed, outside.sum != 0.0f);
    if (p->loss) {
        const float log_outside = (outside.max - max) + logf(outside.sum);
        p->loss[r] = linear_topk_kl_loss(&listed, rest, max, logf(sum), log_outside) * weight;
    }
    if (!p->gradient) return;
    const float factor = (p->raw_gradient ? 1.0f : weight) * p->inverse;
    const float by = linear_topk_kl_outside(&listed, rest, of_outside / sum);
    const float share = outside.sum == 0.0f ? 0.0f : by / outside.sum;
    const v_f32 below = v_set(outside.max), each = v_set(share), all = v_set(factor), inverse = v_set(p->inverse);
    V_FOR_EACH(i, n, p->vocab, {
        const v_f32 z = v_mul(v_load_n(t, row.logits, i, n), inverse);
        v_store_n(t, row.logits, i, n, v_mul(v_mul(v_exp(v_sub(z, below)), each), all));
    });
    put(t, p, &row, max, linear_topk_kl_factor(&listed, rest) / sum, factor);
}

LIGER_TEMPLATE void any_row(liger_dtype t, const struct linear_topk_kl_problem *p, int64_t r) {
    if (row_counts(&p->counted, r)) {
        row_of_type(t, p, r);
        return;
    }
    char *const logits = (char *)p->logits + r * p->logits_stride * (int64_t)liger_dtype_size(t);
    if (p->loss) p->loss[r] = 0.0f;
    if (p->gradient) V_FOR_EACH(i, n, p->vocab, v_store_n(t, logits, i, n, v_zero()));
}

static void rows_chunk(void *argument, int64_t begin, int64_t end) {
    const struct linear_topk_kl_problem *p = argument;
    for (int64_t r = begin; r < end; r++) LIGER_FOR_FLOAT(p->dtype, any_row(LIGER_T, p, r))
}

/* Of rows that count. */
static liger_status check_ids(const struct linear_topk_kl_problem *p) {
    for (int64_t r = 0; r < p->rows; r++) {
        for (int64_t i = 0; i < p->k && row_counts(&p->counted, r); i++) {
            const int64_t id = index_load(p->id_dtype, p->ids, r * p->ids_stride + i);
            LIGER_REQUIRE(
                id >= -1 && id < p->vocab, LIGER_ERR_TARGET,
                "linear_topk_kl: ids[%lld, %lld] is %lld, which is out of bounds: it must be in [0, %lld) or -1",
                (long long)r, (long long)i, (long long)id, (long long)p->vocab);
        }
    }
    return LIGER_OK;
}

liger_status LIGER_CPU(linear_topk_kl)(liger_context *context, const struct linear_topk_kl_problem *problem,
                                       liger_stream stream) {
    (void)stream;
    if (problem->logits == NULL) return check_ids(problem);
    struct linear_topk_kl_problem p = *problem;
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.vocab, p.dtype), rows_chunk, &p);
    return LIGER_OK;
}
