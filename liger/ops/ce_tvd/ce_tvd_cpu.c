/* ce_tvd_cpu.c - cross entropy and total variation on the CPU, compiled once per instruction set. Threads share out the
 * rows. Forward walks over a row's logits twice, the second time in L2: both log-sum-exps have to be known before p - q. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/targets.h"
#include "liger/cpu/vocab_rows.h"
#include "liger/ops/ce_tvd/ce_tvd_problem.h"

/* Of a row. */
struct row_softmaxes {
    float student_max, student_log_sum, teacher_max, teacher_log_sum;
};

/* Forward and backward make them alike, so that they find the same sign of p - q. */
LIGER_TEMPLATE void probabilities(const struct row_softmaxes *of, v_f32 x, v_f32 y, v_f32 p[2]) {
    p[0] = v_sub(v_sub(x, v_set(of->student_max)), v_set(of->student_log_sum));
    p[1] = v_sub(v_sub(y, v_set(of->teacher_max)), v_set(of->teacher_log_sum));
    v_exp_each(2, p);
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* Σ |p - q| and Σ p · sign(p - q). */
struct distances {
    double apart, signs;
};

LIGER_TEMPLATE struct distances distances_of(liger_dtype t, int64_t cols, const void *x, const void *y,
                                             const struct row_softmaxes *of) {
    struct distances all = {0, 0};
    for (int64_t begin = 0; begin < cols; begin += VOCAB_BLOCK) {
        v_f32 apart[2] = {v_zero(), v_zero()}, signs[2] = {v_zero(), v_zero()};
        V_FOR_EACH_CHAIN(i, n, k, 2, vocab_block(cols, begin), {
            v_f32 p[2];
            probabilities(of, v_load_n(t, x, begin + i, n), v_load_n(t, y, begin + i, n), p);
            const v_f32 below = v_select(v_less(p[0], p[1]), v_sub(v_zero(), p[0]), v_zero());
            apart[k] = v_add(apart[k], v_first(v_abs(v_sub(p[0], p[1])), n));
            signs[k] = v_add(signs[k], v_first(v_select(v_less(p[1], p[0]), p[0], below), n));
        });
        all.apart += (double)v_sum(v_add(apart[0], apart[1])), all.signs += (double)v_sum(v_add(signs[0], signs[1]));
    }
    return all;
}

LIGER_TEMPLATE void forward_row(liger_dtype t, const struct ce_tvd_forward_problem *p, int64_t r) {
    const int64_t y = index_load(p->target_dtype, p->target, r);
    if (p->has_signs) p->has_signs[r] = 0; /* backward finds them again */
    if (y == p->ignore_index) {
        p->ce[r] = p->tvd[r] = p->sigma[r] = 0.0f;
        p->student_max[r] = p->student_log_sum[r] = p->teacher_max[r] = p->teacher_log_sum[r] = 0.0f;
        return;
    }
    const void *student = row_of(p->student, r, f_size(t)), *teacher = row_of(p->teacher, r, f_size(t));
    const struct softmax_state of_student = vocab_softmax(t, student, p->cols, 1.0f);
    const struct softmax_state of_teacher = vocab_softmax(t, teacher, p->cols, 1.0f);
    const struct row_softmaxes of = {of_student.max, logf(of_student.sum), of_teacher.max, logf(of_teacher.sum)};
    const struct distances d = distances_of(t, p->cols, student, teacher, &of);
    p->ce[r] = (of.student_max - f32_load(t, student, y)) + of.student_log_sum;
    p->tvd[r] = (float)(0.5 * d.apart);
    p->student_max[r] = of.student_max, p->student_log_sum[r] = of.student_log_sum;
    p->teacher_max[r] = of.teacher_max, p->teacher_log_sum[r] = of.teacher_log_sum;
    p->sigma[r] = isnan(d.apart) ? NAN : (float)d.signs;
}

static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct ce_tvd_forward_problem *p = argument;
    for (int64_t r = begin; r < end; r++) LIGER_FOR_FLOAT(p->dtype, forward_row(LIGER_T, p, r))
}

liger_status LIGER_CPU(ce_tvd_forward)(liger_context *context, const struct ce_tvd_forward_problem *problem,
                                       liger_stream stream) {
    (void)stream;
    struct ce_tvd_forward_problem p = *problem;
    LIGER_TRY(targets_check("ce_tvd_forward", p.target_dtype, p.target, p.rows, p.cols, p.ignore_index));
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.cols, p.dtype), forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* p of one vector, times its factor. */
LIGER_TEMPLATE v_f32 gradient_of(v_f32 x, v_f32 y, const struct row_softmaxes *of, const struct ce_tvd_factors *f) {
    v_f32 p[2];
    probabilities(of, x, y, p);
    const v_f32 not_above = v_select(v_less(p[0], p[1]), v_set(f->below), v_set(f->equal));
    return v_mul(p[0], v_select(v_less(p[1], p[0]), v_set(f->above), not_above));
}

LIGER_TEMPLATE void backward_row(liger_dtype t, const struct ce_tvd_backward_problem *p, int64_t r) {
    const int64_t target = index_load(p->target_dtype, p->target, r);
    void *dx = row_of(p->dstudent, r, f_size(t));
    if (target == p->ignore_index) {
        V_FOR_EACH(i, n, p->cols, v_store_n(t, dx, i, n, v_zero()));
        return;
    }
    const void *x = row_of(p->student, r, f_size(t)), *y = row_of(p->teacher, r, f_size(t));
    const struct row_softmaxes of = {p->student_max[r], p->student_log_sum[r], p->teacher_max[r],
                                     p->teacher_log_sum[r]};
    const struct ce_tvd_factors f = ce_tvd_factors_of(p, r);
    float own[V_LANES]; /* before dx is written, which may be x or y */
    v_store_f32(own, gradient_of(v_set(f32_load(t, x, target)), v_set(f32_load(t, y, target)), &of, &f));
    V_FOR_EACH(i, n, p->cols, v_store_n(t, dx, i, n, gradient_of(v_load_n(t, x, i, n), v_load_n(t, y, i, n), &of, &f)));
    f32_store(t, dx, target, own[0] - f.hit);
}

static void backward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct ce_tvd_backward_problem *p = argument;
    for (int64_t r = begin; r < end; r++) LIGER_FOR_FLOAT(p->dtype, backward_row(LIGER_T, p, r))
}

liger_status LIGER_CPU(ce_tvd_backward)(liger_context *context, const struct ce_tvd_backward_problem *problem,
                                        liger_stream stream) {
    (void)stream;
    struct ce_tvd_backward_problem p = *problem;
    LIGER_TRY(targets_check("ce_tvd_backward", p.target_dtype, p.target, p.rows, p.cols, p.ignore_index));
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.cols, p.dtype), backward_chunk, &p);
    return LIGER_OK;
}
