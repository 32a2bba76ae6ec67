/* column_sum_cpu.c - sums over rows on the CPU, compiled once per instruction set.
 *
 * Threads own columns, so that nothing has to be merged; a column is summed in blocks of rows, and the blocks' sums in
 * order: the rounding error grows with the block and the number of blocks, not with the rows. */
#include "liger/core/fail.h"
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"
#include "liger/ops/column_sum/column_sum_problem.h"

enum { COLUMNS = 256 }; /* of one thread at a time: two arrays of 1 KB */

LIGER_TEMPLATE void sum_columns(liger_dtype t, const struct column_sum_problem *p, int64_t begin, int64_t end) {
    const int64_t cols = end - begin, blocks = column_sum_blocks(p->rows);
    const int64_t rows_per_block = blocks > 0 ? (p->rows + blocks - 1) / blocks : 1;
    float total[COLUMNS], block[COLUMNS];
    for (int64_t c = 0; c < cols; c++) total[c] = p->accumulate ? p->sum[begin + c] : 0.0f;
    for (int64_t first = 0; first < p->rows; first += rows_per_block) {
        const int64_t last = first + rows_per_block < p->rows ? first + rows_per_block : p->rows;
        memset(block, 0, sizeof block);
        for (int64_t r = first; r < last; r++) {
            const char *x = (const char *)p->x + (r * p->stride + begin) * (int64_t)liger_dtype_size(t);
            V_FOR_EACH(
                c, n, cols,
                v_store_n(LIGER_F32, block, c, n, v_add(v_load_n(LIGER_F32, block, c, n), v_load_n(t, x, c, n))));
        }
        for (int64_t c = 0; c < cols; c++) total[c] += block[c];
    }
    for (int64_t c = 0; c < cols; c++) p->sum[begin + c] = total[c];
}

static void columns_chunk(void *argument, int64_t begin, int64_t end) {
    const struct column_sum_problem *p = argument;
    LIGER_FOR_FLOAT(p->dtype, sum_columns(LIGER_T, p, begin, end))
}

liger_status LIGER_CPU(column_sum)(liger_context *context, const struct column_sum_problem *problem,
                                   liger_stream stream) {
    (void)stream;
    struct column_sum_problem p = *problem;
    liger_parallel_for(context, p.cols, COLUMNS, columns_chunk, &p);
    return LIGER_OK;
}
