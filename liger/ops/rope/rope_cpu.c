/* rope_cpu.c - RoPE on the CPU, compiled once per instruction set.
 *
 * A token is the unit: its angles are read from memory once and serve all its heads from L1. Both values of a pair are
 * read before either is written, so an output may be its input. Products and sum are separate instructions: with a
 * fused multiply-add the bits would depend on the instruction set. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"
#include "liger/ops/rope/rope_problem.h"

/* Below this many bytes a second thread costs more than it brings. */
enum { BYTES_PER_CHUNK = 32 << 10 };

/* `pairs` columns of one head of one token, and their partners; cos and sin are these columns' angles. */
LIGER_TEMPLATE void rotate_head(liger_dtype t, liger_dtype tt, bool inverse, const struct rope_problem *p,
                                int64_t pairs, const void *in, void *out, const void *cos, const void *sin) {
    const int64_t half = p->half;
    V_FOR_EACH(i, n, pairs, {
        v_f32 low = v_load_n(t, in, i, n);
        v_f32 high = v_load_n(t, in, half + i, n);
        const v_f32 c = v_load_n(tt, cos, i, n);
        const v_f32 s = v_load_n(tt, sin, i, n);
        if (p->operand_dtype != LIGER_F32) {
            low = v_round_to(p->operand_dtype, low);
            high = v_round_to(p->operand_dtype, high);
        }
        const v_f32 low_c = v_mul(low, c);
        const v_f32 high_s = v_mul(high, s);
        const v_f32 high_c = v_mul(high, c);
        const v_f32 low_s = v_mul(low, s);
        v_store_n(t, out, i, n, inverse ? v_add(low_c, high_s) : v_sub(low_c, high_s));
        v_store_n(t, out, half + i, n, inverse ? v_sub(high_c, low_s) : v_add(high_c, low_s));
    });
}

/* The columns that have their angles in one plane, of all heads of one token of q or k; with the first of them what passes
 * through. */
LIGER_TEMPLATE void rotate_heads(liger_dtype t, liger_dtype tt, bool inverse, const struct rope_problem *p,
                                 struct rope_heads in, struct rope_heads out, int64_t heads, int64_t batch, int64_t s,
                                 int plane, const void *cos, const void *sin) {
    const int64_t element = (int64_t)liger_dtype_size(t), rotated = 2 * p->half;
    const int64_t first = p->first[plane], pairs = p->first[plane + 1] - first;
    const char *x = (const char *)in.data + (batch * in.batch_stride + s * in.seq_stride + first) * element;
    char *y = (char *)out.data + (batch * out.batch_stride + s * out.seq_stride + first) * element;
    for (int64_t head = 0; head < heads; head++) {
        rotate_head(t, tt, inverse, p, pairs, x, y, cos, sin);
        if (rotated < p->dim && x != y && plane == 0)
            memcpy(y + rotated * element, x + rotated * element, (size_t)((p->dim - rotated) * element));
        x += in.head_stride * element;
        y += out.head_stride * element;
    }
}

LIGER_TEMPLATE void rotate_tokens(liger_dtype t, liger_dtype tt, bool inverse, const struct rope_problem *p,
                                  int64_t begin, int64_t end) {
    const int64_t element = (int64_t)liger_dtype_size(tt);
    for (int64_t token = begin; token < end; token++)
        for (int plane = 0; plane < p->planes; plane++) {
            const int64_t batch = token / p->seq, s = token % p->seq, first = p->first[plane];
            const int64_t cos_at = plane * p->cos_plane_stride + batch * p->cos_batch_stride + s * p->cos_seq_stride;
            const int64_t sin_at = plane * p->sin_plane_stride + batch * p->sin_batch_stride + s * p->sin_seq_stride;
            const char *cos = (const char *)p->cos + (cos_at + first) * element;
            const char *sin = (const char *)p->sin + (sin_at + first) * element;
            rotate_heads(t, tt, inverse, p, p->q, p->q_out, p->q_heads, batch, s, plane, cos, sin);
            rotate_heads(t, tt, inverse, p, p->k, p->k_out, p->k_heads, batch, s, plane, cos, sin);
        }
}

LIGER_TEMPLATE void rotate_as(bool inverse, const struct rope_problem *p, int64_t begin, int64_t end) {
    if (p->table_dtype == LIGER_F32)
        LIGER_FOR_FLOAT(p->dtype, rotate_tokens(LIGER_T, LIGER_F32, inverse, p, begin, end))
    else LIGER_FOR_FLOAT(p->dtype, rotate_tokens(LIGER_T, LIGER_T, inverse, p, begin, end))
}

static void rotate_chunk(void *argument, int64_t begin, int64_t end) {
    const struct rope_problem *p = argument;
    if (p->inverse) rotate_as(true, p, begin, end);
    else rotate_as(false, p, begin, end);
}

static liger_status run(liger_context *context, const struct rope_problem *problem) {
    struct rope_problem p = *problem;
    const int64_t token_bytes = (p.q_heads + p.k_heads) * p.dim * (int64_t)liger_dtype_size(p.dtype);
    liger_parallel_for(context, p.batch * p.seq, 1 + BYTES_PER_CHUNK / token_bytes, rotate_chunk, &p);
    return LIGER_OK;
}

liger_status LIGER_CPU(rope_forward)(liger_context *context, const struct rope_forward_problem *problem,
                                     liger_stream stream) {
    (void)stream;
    return run(context, &problem->rope);
}

liger_status LIGER_CPU(rope_backward)(liger_context *context, const struct rope_backward_problem *problem,
                                      liger_stream stream) {
    (void)stream;
    return run(context, &problem->rope);
}
