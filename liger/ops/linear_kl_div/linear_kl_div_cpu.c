/* linear_kl_div_cpu.c - rows of a divergence on the CPU, compiled once per instruction set. Threads share out the rows.
 *
 * The first walk over a row takes what all of it adds up to, a block relative to its own maximum: a common offset of the
 * logits then costs no digits. The second writes the gradient. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/vocab_rows.h"
#include "liger/ops/linear_kl_div/linear_kl_div_problem.h"

/* What a row, or a part of it, adds up to. */
struct row {
    struct softmax_state z;
    float mass, cross; /* Σ q, Σ q·(log max(q, eps) - (z - z.max)) */
};

/* `cross` relative to another maximum. */
LIGER_TEMPLATE float cross_from(struct row row, float max) {
    return row.mass == 0 ? row.cross : row.cross + (max - row.z.max) * row.mass;
}

/* Σ q and `cross` of a block, relative to part.z.max. */
LIGER_TEMPLATE struct row add_block(liger_dtype tq, const void *target, int64_t begin, int64_t count, const float *z,
                                    float eps, struct row part) {
    v_f32 mass[2] = {v_zero(), v_zero()}, cross[2] = {v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 2, count, {
        const v_f32 q = v_load_n(tq, target, begin + i, n);
        const v_f32 below = v_sub(v_load_f32(z + i), v_set(part.z.max));
        const v_f32 term = v_mul(q, v_sub(v_log(v_max(v_set(eps), q)), below));
        mass[k] = v_add(mass[k], q);
        cross[k] = v_add(cross[k], v_select(v_less(v_zero(), v_abs(q)), term, v_zero()));
    });
    part.mass = v_sum(v_add(mass[0], mass[1]));
    part.cross = v_sum(v_add(cross[0], cross[1]));
    return part;
}

LIGER_TEMPLATE struct row read_row(liger_dtype t, liger_dtype tq, const struct linear_kl_div_problem *p,
                                   const void *logits, const void *target) {
    float z[VOCAB_BLOCK + V_LANES];
    struct row row = {.z = softmax_empty()};
    for (int64_t begin = 0; begin < p->vocab; begin += VOCAB_BLOCK) {
        const int64_t count = vocab_block(p->vocab, begin);
        struct row part = {.z = {.max = vocab_widen(t, logits, begin, count, false, 0.0f, z)}};
        if (p->inverse != 1.0f) part.z.max = vocab_scale(z, count, p->inverse);
        part = add_block(tq, target, begin, count, z, p->eps, part);
        const struct row before = row;
        row.z = softmax_push(row.z, z, (count + V_LANES - 1) / V_LANES * V_LANES, part.z.max);
        row.mass += part.mass;
        row.cross = cross_from(before, row.z.max) + cross_from(part, row.z.max);
    }
    return row;
}

LIGER_TEMPLATE void one_row(liger_dtype t, liger_dtype tq, const struct linear_kl_div_problem *p, int64_t r) {
    const char *logits = (const char *)p->logits + r * p->logits_stride * (int64_t)liger_dtype_size(t);
    const char *target = (const char *)p->target + r * p->target_stride * (int64_t)liger_dtype_size(tq);
    char *dlogits = p->dlogits ? (char *)p->dlogits + r * p->logits_stride * (int64_t)liger_dtype_size(t) : NULL;
    if (!row_counts(&p->counted, r)) {
        if (p->loss) p->loss[r] = 0.0f;
        if (dlogits) V_FOR_EACH(i, n, p->vocab, v_store_n(t, dlogits, i, n, v_zero()));
        return;
    }
    const struct row row = read_row(t, tq, p, logits, target);
    const float weight = row_weight(&p->counted);
    if (p->loss) p->loss[r] = (row.cross + logf(row.z.sum) * row.mass) * weight;
    if (dlogits == NULL) return;
    const v_f32 max = v_set(row.z.max), share = v_set(row.mass / row.z.sum), inverse = v_set(p->inverse);
    const v_f32 factor = v_set((p->raw_gradient ? 1.0f : weight) * p->inverse);
    V_FOR_EACH(i, n, p->vocab, {
        const v_f32 z = v_mul(v_load_n(t, logits, i, n), inverse);
        const v_f32 d = v_sub(v_mul(v_exp(v_sub(z, max)), share), v_load_n(tq, target, i, n));
        v_store_n(t, dlogits, i, n, v_mul(d, factor));
    });
}

LIGER_TEMPLATE void rows_of_target(liger_dtype tq, const struct linear_kl_div_problem *p, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) LIGER_FOR_FLOAT(p->dtype, one_row(LIGER_T, tq, p, r))
}

static void rows_chunk(void *argument, int64_t begin, int64_t end) {
    const struct linear_kl_div_problem *p = argument;
    switch (p->target_dtype) {
        case LIGER_F16: rows_of_target(LIGER_F16, p, begin, end); break;
        case LIGER_BF16: rows_of_target(LIGER_BF16, p, begin, end); break;
        default: rows_of_target(LIGER_F32, p, begin, end);
    }
}

liger_status LIGER_CPU(linear_kl_div)(liger_context *context, const struct linear_kl_div_problem *problem,
                                      liger_stream stream) {
    (void)stream;
    struct linear_kl_div_problem p = *problem;
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.vocab, p.dtype), rows_chunk, &p);
    return LIGER_OK;
}
