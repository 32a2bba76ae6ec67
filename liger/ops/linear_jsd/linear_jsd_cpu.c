/* linear_jsd_cpu.c - rows of a Jensen-Shannon divergence on the CPU, compiled once per instruction set. Threads share out the
 * rows. A row pair is walked three times: the sums of both softmaxes; the terms; the gradient, from what the second walk has
 * left in the place of the logits. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/jensen_shannon.h"
#include "liger/cpu/vocab_rows.h"
#include "liger/ops/linear_jsd/linear_jsd_problem.h"

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

/* With `keep` d, the derivative of a term by log Q, and Q take the place of the logits. */
LIGER_TEMPLATE struct totals add_up(enum mixture_mode mode, const struct linear_jsd_problem *p, float *student,
                                    float *teacher, bool keep) {
    const struct log_softmax s = log_softmax_of(student, p->vocab, p->inverse);
    const struct log_softmax t = log_softmax_of(teacher, p->vocab, p->inverse);
    v_f32 loss[2] = {v_zero(), v_zero()}, d[2] = {v_zero(), v_zero()};
    V_FOR_EACH_CHAIN(i, n, k, 2, p->vocab, {
        const v_f32 log_q = log_probability(student, i, n, p->inverse, s);
        const v_f32 log_p = log_probability(teacher, i, n, p->inverse, t);
        struct js_elements of;
        js_elements_of(1, mode, p->mixture, &log_q, &log_p, &of);
        loss[k] = v_add(loss[k], v_first(of.value[0], n));
        d[k] = v_add(d[k], v_first(of.slope[0], n));
        if (keep) v_store_n(LIGER_F32, student, i, n, of.slope[0]);
        if (keep) v_store_n(LIGER_F32, teacher, i, n, of.q[0]);
    });
    return (struct totals){v_sum(v_add(loss[0], loss[1])), v_sum(v_add(d[0], d[1]))};
}

static struct totals totals_of(const struct linear_jsd_problem *p, float *student, float *teacher, bool keep) {
    switch (p->mixture.mode) {
        case MIXTURE_TO_TEACHER: return add_up(MIXTURE_TO_TEACHER, p, student, teacher, keep);
        case MIXTURE_TO_STUDENT: return add_up(MIXTURE_TO_STUDENT, p, student, teacher, keep);
        case MIXTURE_FEW_P: return add_up(MIXTURE_FEW_P, p, student, teacher, keep);
        case MIXTURE_FEW_Q: return add_up(MIXTURE_FEW_Q, p, student, teacher, keep);
        default: return add_up(MIXTURE_EVEN, p, student, teacher, keep);
    }
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
    const struct totals totals = totals_of(p, student, teacher, keep);
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
