/* norm.h - the frame of a normalisation's kernels: rows forward, rows backward, sums over rows for the parameters.
 *
 * A template: a room defines the following and includes this file, which makes its two kernels of them.
 *
 *   #define NORM rms_norm                       problems rms_norm_forward_problem, rms_norm_backward_problem
 *   #define NORM_SUMS(p) (p)->dweight           the outputs that are sums over rows, in the order of the workspace
 *   forward_row(t, tw, p, r)                    all of row r
 *   backward_row(t, tw, p, r, partial)          dx of row r; its parts are added to the rows partial[k], NULL: not wanted
 *
 * t and tw, the dtypes of activations and parameters, are literals. The sums are made of one partial row per fixed block of
 * rows, and the partials are added in order: the same bits for any number of threads. */
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"

#define NORM_JOIN2(op, rest) op##_##rest
#define NORM_JOIN(op, rest) NORM_JOIN2(op, rest)
#define NORM_NAME(rest) NORM_JOIN(NORM, rest)

/* Below this many bytes a second thread costs more than it brings. */
enum { BYTES_PER_CHUNK = 32 << 10 };

#define FOR_EACH_ROW(p, begin, end, row)                                                                               \
    if ((p)->weight_dtype == LIGER_F32)                                                                                \
        LIGER_FOR_FLOAT((p)->dtype, for (int64_t r = (begin); r < (end); r++) row(LIGER_T, LIGER_F32))                 \
    else LIGER_FOR_FLOAT((p)->dtype, for (int64_t r = (begin); r < (end); r++) row(LIGER_T, LIGER_T))

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct NORM_NAME(forward_problem) *p = argument;
#define ROW(t, tw) forward_row(t, tw, p, r)
    FOR_EACH_ROW(p, begin, end, ROW)
#undef ROW
}

liger_status LIGER_CPU(NORM_NAME(forward))(liger_context *context, const struct NORM_NAME(forward_problem) * problem,
                                           liger_stream stream) {
    (void)stream;
    struct NORM_NAME(forward_problem) p = *problem;
    const int64_t row_bytes = p.cols * (int64_t)liger_dtype_size(p.dtype);
    liger_parallel_for(context, p.rows, 1 + BYTES_PER_CHUNK / row_bytes, forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* The workspace is [sums, partials, cols]. */
static void backward_block(void *argument, int64_t block, int64_t end) {
    const struct NORM_NAME(backward_problem) *p = argument;
    const int64_t per = (p->rows + p->partials - 1) / p->partials;
    void *const sum[] = {NORM_SUMS(p)};
    enum { SUMS = sizeof sum / sizeof sum[0] };
    for (; block < end; block++) {
        const int64_t first = block * per, last = first + per < p->rows ? first + per : p->rows;
        float *partial[SUMS];
        for (int k = 0; k < SUMS; k++) {
            partial[k] = sum[k] ? p->workspace + (k * p->partials + block) * p->cols : NULL;
            if (partial[k]) memset(partial[k], 0, (size_t)p->cols * sizeof *partial[k]);
        }
#define ROW(t, tw) backward_row(t, tw, p, r, partial)
        FOR_EACH_ROW(p, first, last, ROW)
#undef ROW
    }
}

static void add_partials(void *argument, int64_t begin, int64_t end) {
    const struct NORM_NAME(backward_problem) *p = argument;
    void *const sum[] = {NORM_SUMS(p)};
    for (int64_t k = 0; k < (int64_t)(sizeof sum / sizeof sum[0]); k++) {
        if (sum[k] == NULL) continue;
        V_FOR_EACH(c, n, end - begin, {
            v_f32 total = v_zero();
            for (int64_t block = 0; block < p->partials; block++)
                total =
                    v_add(total, v_load_n(LIGER_F32, p->workspace, (k * p->partials + block) * p->cols + begin + c, n));
            LIGER_FOR_FLOAT(p->weight_dtype, v_store_n(LIGER_T, sum[k], begin + c, n, total))
        });
    }
}

liger_status LIGER_CPU(NORM_NAME(backward))(liger_context *context, const struct NORM_NAME(backward_problem) * problem,
                                            liger_stream stream) {
    (void)stream;
    struct NORM_NAME(backward_problem) p = *problem;
    liger_parallel_for(context, p.partials, 1, backward_block, &p);
    liger_parallel_for(context, p.cols, 4096, add_partials, &p);
    return LIGER_OK;
}
