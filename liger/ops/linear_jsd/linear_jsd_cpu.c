/* linear_jsd_cpu.c - rows of a Jensen-Shannon divergence on the CPU, compiled once per instruction set. Threads share out the
 * rows. A row pair is walked three times: the sums of both softmaxes; the terms; the gradient, from what the second walk has
 * left in the place of the logits. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/vocab_rows.h"
#include "liger/ops/linear_jsd/linear_jsd_problem.h"

/* ---- an element --------------------------------------------------------------------------------------------------- */

enum mode { TO_TEACHER, TO_STUDENT, BETWEEN_BOTH }; /* beta 0, 1, and the others */

/* d: the derivative of the term by log Q, Q being held by nothing. */
struct element {
    v_f32 term, d, q;
};

/* A term whose factor is 0 is 0; of NaN it stays NaN. */
LIGER_TEMPLATE v_f32 unless_zero(v_f32 factor, v_f32 term) {
    return v_select(v_less(factor, v_set(FLT_MIN)), v_zero(), term);
}

/* From log Q and log P. log M is formed relative to the larger of the two, and underflows with neither. */
LIGER_TEMPLATE struct element element_of(enum mode mode, v_f32 log_q, v_f32 log_p, struct mixture m) {
    const v_f32 apart = v_sub(log_p, log_q);
    if (mode == TO_TEACHER) {
        const v_f32 p = v_exp(log_p);
        return (struct element){unless_zero(p, v_mul(p, apart)), v_sub(v_zero(), p), v_exp(log_q)};
    }
    if (mode == TO_STUDENT) {
        const v_f32 q = v_exp(log_q), term = unless_zero(q, v_mul(q, v_sub(log_q, log_p)));
        return (struct element){term, v_add(term, q), q};
    }
    const v_f32 larger = v_max(log_q, log_p), beta = v_set(m.beta), rest = v_set(m.rest);
    const v_f32 by = v_select(v_less(larger, v_set(-FLT_MAX)), v_zero(), apart); /* both are -inf */
    const v_mask of_teacher = v_less(v_zero(), by);
    const v_f32 most = v_exp(larger), ratio = v_exp(v_sub(v_zero(), v_abs(by)));
    const v_f32 p = v_select(of_teacher, most, v_mul(most, ratio)), q = v_select(of_teacher, v_mul(most, ratio), most);
    const v_f32 mixed = v_select(of_teacher, v_fma(rest, ratio, beta), v_fma(beta, ratio, rest));
    const v_f32 log_mixed = v_log(mixed); /* log M = larger + log_mixed */
    const v_f32 of_p = v_sub(v_select(of_teacher, v_zero(), by), log_mixed);
    const v_f32 of_q = v_sub(v_select(of_teacher, v_sub(v_zero(), by), v_zero()), log_mixed);
    const v_f32 d = unless_zero(q, v_mul(v_mul(rest, q), of_q));
    return (struct element){v_add(unless_zero(p, v_mul(v_mul(beta, p), of_p)), d), d, q};
}

/* ---- a row -------------------------------------------------------------------------------------------------------- */

struct log_softmax {
    float max, log_sum;
};

static struct log_softmax log_softmax_of(const float *row, int64_t vocab, float inverse) {
    const struct softmax_state state = vocab_softmax(LIGER_F32, row, vocab, inverse);
    return (struct log_softmax){state.max, logf(state.sum)};
}

LIGER_TEMPLATE v_f32 log_probability(const float *row, int64_t i, int n, float inverse, struct log_softmax of) {
    const v_f32 z = v_mul(v_load_n(LIGER_F32, row, i, n), v_set(inverse));
    return v_sub(v_sub(z, v_set(of.max)), v_set(of.log_sum));
}

struct totals {
    float loss, d;
};

/* With `keep` d and Q take the place of the logits. */
LIGER_TEMPLATE struct totals add_up(enum mode mode, const struct linear_jsd_problem *p, float *student, float *teacher,
                                    bool keep) {
    const struct log_softmax s = log_softmax_of(student, p->vocab, p->inverse);
    const struct log_softmax t = log_softmax_of(teacher, p->vocab, p->inverse);
    v_f32 loss[2] = {v_zero(), v_zero()}, d[2] = {v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 2, p->vocab, {
        const v_f32 log_q = log_probability(student, i, n, p->inverse, s);
        const struct element e = element_of(mode, log_q, log_probability(teacher, i, n, p->inverse, t), p->mixture);
        loss[k] = v_add(loss[k], v_first(e.term, n));
        d[k] = v_add(d[k], v_first(e.d, n));
        if (keep) v_store_n(LIGER_F32, student, i, n, e.d);
        if (keep) v_store_n(LIGER_F32, teacher, i, n, e.q);
    });
    return (struct totals){v_sum(v_add(loss[0], loss[1])), v_sum(v_add(d[0], d[1]))};
}

static struct totals to_teacher(const struct linear_jsd_problem *p, float *student, float *teacher, bool keep) {
    return add_up(TO_TEACHER, p, student, teacher, keep);
}
static struct totals to_student(const struct linear_jsd_problem *p, float *student, float *teacher, bool keep) {
    return add_up(TO_STUDENT, p, student, teacher, keep);
}
static struct totals between_both(const struct linear_jsd_problem *p, float *student, float *teacher, bool keep) {
    return add_up(BETWEEN_BOTH, p, student, teacher, keep);
}

LIGER_TEMPLATE void one_row(liger_dtype t, const struct linear_jsd_problem *p, int64_t r) {
    float *student = p->student + r * p->student_stride, *teacher = p->teacher + r * p->teacher_stride;
    char *dlogits = p->dlogits ? (char *)p->dlogits + r * p->dlogits_stride * (int64_t)liger_dtype_size(t) : NULL;
    if (!row_counts(&p->counted, r)) {
        if (p->loss) p->loss[r] = 0.0f;
        if (dlogits) V_FOR_EACH(i, n, p->vocab, v_store_n(t, dlogits, i, n, v_zero()));
        return;
    }
    const bool keep = dlogits != NULL;
    const struct totals totals = p->mixture.beta == 0.0f   ? to_teacher(p, student, teacher, keep)
                                 : p->mixture.rest == 0.0f ? to_student(p, student, teacher, keep)
                                                           : between_both(p, student, teacher, keep);
    const float weight = row_weight(&p->counted);
    if (p->loss) p->loss[r] = totals.loss * weight;
    if (!keep) return;
    const v_f32 sum = v_set(totals.d), factor = v_set((p->raw_gradient ? 1.0f : weight) * p->inverse);
    V_FOR_EACH(i, n, p->vocab, {
        const v_f32 q = v_load_n(LIGER_F32, teacher, i, n);
        v_store_n(t, dlogits, i, n, v_mul(v_fnma(q, sum, v_load_n(LIGER_F32, student, i, n)), factor));
    });
}

static void rows_chunk(void *argument, int64_t begin, int64_t end) {
    const struct linear_jsd_problem *p = argument;
    for (int64_t r = begin; r < end; r++) LIGER_FOR_FLOAT(p->dtype, one_row(LIGER_T, p, r))
}

liger_status LIGER_CPU(linear_jsd)(liger_context *context, const struct linear_jsd_problem *problem,
                                   liger_stream stream) {
    (void)stream;
    struct linear_jsd_problem p = *problem;
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.vocab, LIGER_F32), rows_chunk, &p);
    return LIGER_OK;
}
