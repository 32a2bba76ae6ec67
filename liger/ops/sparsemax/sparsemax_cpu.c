/* sparsemax_cpu.c - sparsemax on the CPU, compiled once per instruction set. Threads share out the rows. A row is walked three
 * times, twice in cache: its largest values, what may be in the support, and what is written.
 *
 * tau comes from Newton's method, which rises from any tau of a part of the row until the support stays as it is. The largest
 * values of a few lanes give a start above which a row has few values: those are copied out, and the steps walk them alone.
 * Where they are too many the steps walk the row. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/simplex.h"
#include "liger/cpu/vocab_rows.h"
#include "liger/ops/sparsemax/sparsemax_problem.h"

enum { LIST = 1024, WORD = 32, ALL_LANES = (1 << V_LANES) - 1 };

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* Copies out what is above; -1: that is more than LIST values. */
LIGER_TEMPLATE int64_t list_above(liger_dtype t, const void *x, int64_t cols, float above, float *list) {
    int64_t count = 0;
    V_FOR_EACH(i, n, cols, {
        uint32_t bits = v_bits_of(v_less(v_set(above), padded(v_load_n(t, x, i, n), n)));
        if (count + __builtin_popcount(bits) > LIST) return -1;
        for (; bits != 0; bits &= bits - 1) list[count++] = f32_load(t, x, i + __builtin_ctz(bits));
    });
    return count;
}

LIGER_TEMPLATE void write_rows_without(liger_dtype t, int64_t cols, void *y, uint32_t *support) {
    V_FOR_EACH(i, n, cols, v_store_n(t, y, i, n, v_set(NAN)));
    for (int64_t w = 0; w < support_words(cols); w++) support[w] = UINT32_MAX;
    if (cols % WORD) support[cols / WORD] = (1u << cols % WORD) - 1;
}

/* Words of 32 elements, the last one with what is left. Most vectors have nothing of the support. */
LIGER_TEMPLATE void write_row(liger_dtype t, int64_t cols, const struct threshold *tau, const void *x, void *y,
                              uint32_t *support) {
    const v_f32 above = v_set(tau->above), origin = v_set(tau->origin), rest = v_set(tau->rest),
                lower = v_set(tau->lower);
    for (int64_t begin = 0; begin < cols; begin += WORD) {
        const int64_t count = cols - begin < WORD ? cols - begin : WORD;
        uint32_t word = 0;
        V_FOR_EACH(i, n, count, {
            const v_f32 value = padded(v_load_n(t, x, begin + i, n), n);
            const v_mask in = v_less(above, value);
            const uint32_t bits = v_bits_of(in);
            v_f32 out = v_zero();
            if (bits != 0) {
                const v_f32 over = v_sub(v_sub(v_sub(value, origin), rest), lower);
                out = v_select(in, v_max(over, v_zero()), v_zero());
                word |= bits << i;
            }
            v_store_n(t, y, begin + i, n, out);
        });
        support[begin / WORD] = word;
    }
}

LIGER_TEMPLATE void forward_row(liger_dtype t, int64_t cols, const void *x, void *y, uint32_t *support) {
    float lanes[SIMPLEX_CHAINS * V_LANES], list[LIST];
    const float max = simplex_largest(t, x, cols, lanes);
    if (isinf(max)) {
        write_rows_without(t, cols, y, support);
        return;
    }
    /* a bit below, for what another order of the sums may round */
    const float start = threshold_of_list(lanes, SIMPLEX_CHAINS * V_LANES, max, float_below(max, -1)).above - 0x1p-14f;
    const int64_t count = list_above(t, x, cols, start, list);
    const struct threshold tau =
        count >= 0 ? threshold_of_list(list, count, max, start) : find_threshold(t, x, cols, max, start);
    write_row(t, cols, &tau, x, y, support);
}

LIGER_TEMPLATE void forward_rows(liger_dtype t, const struct sparsemax_forward_problem *p, int64_t begin, int64_t end) {
    const size_t element = liger_dtype_size(t);
    for (int64_t r = begin; r < end; r++)
        forward_row(t, p->cols, row_of(p->x, r, element), row_of(p->y, r, element),
                    p->support + r * support_words(p->cols));
}

static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct sparsemax_forward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, forward_rows(LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(sparsemax_forward)(liger_context *context, const struct sparsemax_forward_problem *problem,
                                          liger_stream stream) {
    (void)stream;
    struct sparsemax_forward_problem p = *problem;
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.cols, p.dtype), forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* Blocks are added in double. */
LIGER_TEMPLATE float mean_of_support(liger_dtype t, int64_t cols, const void *dy, const uint32_t *support) {
    double total = 0;
    int64_t members = 0;
    for (int64_t block = 0; block < cols; block += VOCAB_BLOCK) {
        v_f32 sum = v_zero();
        const int64_t before = members, end = block + vocab_block(cols, block);
        for (int64_t begin = block; begin < end; begin += WORD) {
            const int64_t count = end - begin < WORD ? end - begin : WORD;
            const uint32_t word = support[begin / WORD] & UINT32_MAX >> (WORD - count);
            if (word == 0) continue;
            members += __builtin_popcount(word);
            V_FOR_EACH(i, n, count, {
                const uint32_t bits = word >> i & ALL_LANES;
                if (bits != 0) sum = v_add(sum, v_select(v_mask_of(bits), v_load_n(t, dy, begin + i, n), v_zero()));
            });
        }
        if (members > before) total += (double)v_sum(sum);
    }
    return members > 0 ? (float)(total / (double)members) : 0.0f;
}

LIGER_TEMPLATE void backward_row(liger_dtype t, int64_t cols, const void *dy, const uint32_t *support, void *dx) {
    const v_f32 mean = v_set(mean_of_support(t, cols, dy, support));
    for (int64_t begin = 0; begin < cols; begin += WORD) {
        const int64_t count = cols - begin < WORD ? cols - begin : WORD;
        const uint32_t word = support[begin / WORD];
        V_FOR_EACH(i, n, count, {
            const uint32_t bits = word >> i & ALL_LANES;
            v_f32 out = v_zero();
            if (bits != 0) out = v_select(v_mask_of(bits), v_sub(v_load_n(t, dy, begin + i, n), mean), v_zero());
            v_store_n(t, dx, begin + i, n, out);
        });
    }
}

LIGER_TEMPLATE void backward_rows(liger_dtype t, const struct sparsemax_backward_problem *p, int64_t begin,
                                  int64_t end) {
    const size_t element = liger_dtype_size(t);
    for (int64_t r = begin; r < end; r++)
        backward_row(t, p->cols, row_of(p->dy, r, element), p->support + r * support_words(p->cols),
                     row_of(p->dx, r, element));
}

static void backward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct sparsemax_backward_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, backward_rows(LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(sparsemax_backward)(liger_context *context, const struct sparsemax_backward_problem *problem,
                                           liger_stream stream) {
    (void)stream;
    struct sparsemax_backward_problem p = *problem;
    liger_parallel_for(context, p.rows, vocab_rows_per_task(p.cols, p.dtype), backward_chunk, &p);
    return LIGER_OK;
}
