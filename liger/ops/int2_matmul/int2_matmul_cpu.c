/* int2_matmul_cpu.c - the int8 x int2 product on the CPU, compiled once per instruction set.
 *
 * The result is cut into blocks, one task each. A task goes through k slab by slab, packs its rows of a and, a panel at a
 * time, its columns of b into its thread's scratch (some 2 MB) and multiplies them: no unpacked copy of b is ever whole. A
 * sum of a·(code - 1) begins as minus the sum of its row of a, so that the codes go into the products as they are.
 *
 * The order of k is ours, as long as a and b agree: a step takes 16 packed rows, which are 16 neighbours of k in each quarter
 * of a's row. Four packed rows of a column make a word, which shifted by 2i and masked is the lane of quarter i. */
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "liger/core/fail.h"
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/scratch.h"
#include "liger/ops/int2_matmul/int2_matmul_kernel.h"
#include "liger/ops/int2_matmul/int2_matmul_problem.h"

enum { STEP_ROWS = 16, SLAB_STEPS = 64, MOST_ROWS = 512, MOST_COLS = 1024, MOST_THREADS_SHARE = 3 };

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t parts_of(int64_t a, int64_t part) { return (a + part - 1) / part; }

struct int2_call {
    const struct int2_matmul_problem *problem;
    int64_t block_rows, block_cols; /* multiples of the tile */
    int64_t blocks_down;
    atomic_bool out_of_memory;
};

struct span {
    int64_t begin, size;
};

/* A thread's scratch. */
struct int2_space {
    int8_t *a;       /* [tiles of rows][steps][INT2_ROWS][64] */
    uint32_t *codes; /* [steps][INT2_LANES][INT2_COLS] */
    int32_t *start;  /* of each row's sums */
    int32_t *tile;
};

static bool take_space(const struct int2_call *call, struct int2_space *space) {
    const int64_t rows = call->block_rows, steps = least(SLAB_STEPS, parts_of(call->problem->packed, STEP_ROWS));
    const size_t a = (size_t)(rows * steps * INT2_STEP_K), codes = (size_t)(steps * INT2_LANES * INT2_COLS) * 4;
    const size_t tile = sizeof(int32_t) * INT2_ROWS * INT2_COLS, start = (size_t)rows * sizeof(int32_t);
    char *memory = cpu_thread_scratch(a + codes + tile + start + 256);
    if (memory == NULL) return false;
    space->codes = (uint32_t *)(void *)memory;
    space->tile = (int32_t *)(void *)(memory + codes);
    space->a = (int8_t *)memory + codes + (tile + 63) / 64 * 64;
    space->start = (int32_t *)(void *)(space->a + a);
    return true;
}

/* ---- packing ------------------------------------------------------------------------------------------------------ */

static int32_t minus_sum(const int8_t *a, int64_t count) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < count; i++) sum -= (uint32_t)a[i];
    return (int32_t)sum;
}

/* 16 neighbours of each quarter of the row; zeros beyond its end, whatever the codes there are. */
static void pack_step(const int8_t *quarter, int64_t packed, int64_t have, int8_t *out) {
    for (int i = 0; i < 4; i++, quarter += packed, out += STEP_ROWS) {
        if (have >= STEP_ROWS) {
            memcpy(out, quarter, STEP_ROWS);
        } else {
            memset(out, 0, STEP_ROWS);
            memcpy(out, quarter, (size_t)have);
        }
    }
}

static void pack_a(const struct int2_matmul_problem *p, struct span rows, struct span steps, int8_t *out) {
    const int64_t padded = parts_of(rows.size, INT2_ROWS) * INT2_ROWS;
    for (int64_t r = 0; r < padded; r++) {
        int8_t *at = out + (r / INT2_ROWS * steps.size * INT2_ROWS + r % INT2_ROWS) * INT2_STEP_K;
        const int8_t *row = p->a + (rows.begin + r) * p->lda;
        for (int64_t s = 0; s < steps.size; s++, at += INT2_ROWS * INT2_STEP_K) {
            const int64_t first = (steps.begin + s) * STEP_ROWS;
            if (r < rows.size) pack_step(row + first, p->packed, p->packed - first, at);
            else memset(at, 0, INT2_STEP_K);
        }
    }
}

/* Packed rows `row` to row + 3, of which `have` are there, of each column. */
static void gather_words(const struct int2_weights *b, int64_t row, int64_t have, struct span cols, uint32_t *word) {
    const uint8_t *data = b->data + row * b->row_stride + cols.begin * b->col_stride;
    memset(word, 0, INT2_COLS * sizeof *word);
    for (int64_t j = 0; j < cols.size; j++)
        for (int64_t q = 0; q < least(have, 4); q++)
            word[j] |= (uint32_t)data[q * b->row_stride + j * b->col_stride] << 8 * q;
}

static void read_words(const uint8_t *data, int64_t stride, uint32_t *word) {
    const uint8_t *second = data + stride, *third = second + stride, *fourth = third + stride;
    for (int j = 0; j < INT2_COLS; j++)
        word[j] = data[j] | (uint32_t)second[j] << 8 | (uint32_t)third[j] << 16 | (uint32_t)fourth[j] << 24;
}

static void read_transposed_words(const uint8_t *data, int64_t stride, uint32_t *word) {
    for (int j = 0; j < INT2_COLS; j++) {
        const uint8_t *four = data + j * stride;
        word[j] = four[0] | (uint32_t)four[1] << 8 | (uint32_t)four[2] << 16 | (uint32_t)four[3] << 24;
    }
}

static void pack_codes(const struct int2_matmul_problem *p, struct span cols, struct span steps, uint32_t *out) {
    const struct int2_weights *b = &p->b;
    const int64_t end = (steps.begin + steps.size) * STEP_ROWS;
    for (int64_t row = steps.begin * STEP_ROWS; row < end; row += 4) {
        uint32_t word[INT2_COLS];
        const uint8_t *data = b->data + row * b->row_stride + cols.begin * b->col_stride;
        const bool whole = cols.size == INT2_COLS && row + 4 <= p->packed;
        if (whole && b->col_stride == 1) read_words(data, b->row_stride, word);
        else if (whole && b->row_stride == 1) read_transposed_words(data, b->col_stride, word);
        else gather_words(b, row, p->packed - row, cols, word);
        uint32_t *lane = out + row % STEP_ROWS / 4 * INT2_COLS;
        for (int i = 0; i < 4; i++, lane += 4 * INT2_COLS)
            for (int j = 0; j < INT2_COLS; j++) lane[j] = word[j] >> 2 * i & 0x03030303u;
        if (row % STEP_ROWS == STEP_ROWS - 4) out += INT2_LANES * INT2_COLS;
    }
}

/* ---- one block of c ----------------------------------------------------------------------------------------------- */

static void store_tile(const struct int2_matmul_problem *p, struct span rows, struct span cols, const int32_t *tile,
                       bool add) {
    for (int64_t r = 0; r < rows.size; r++, tile += INT2_COLS) {
        uint32_t *c = (uint32_t *)p->c + (rows.begin + r) * p->ldc + cols.begin;
        if (!add) memcpy(c, tile, (size_t)cols.size * sizeof *c);
        else
            for (int64_t j = 0; j < cols.size; j++) c[j] += (uint32_t)tile[j];
    }
}

static void multiply_panel(const struct int2_call *call, const struct int2_space *space, struct span rows,
                           struct span cols, struct span steps) {
    for (int64_t i = 0; i < rows.size; i += INT2_ROWS) {
        const struct span some = {rows.begin + i, least(INT2_ROWS, rows.size - i)};
        for (int64_t r = 0; r < INT2_ROWS; r++)
            for (int64_t j = 0; j < INT2_COLS; j++)
                space->tile[r * INT2_COLS + j] = steps.begin == 0 && r < some.size ? space->start[i + r] : 0;
        int2_multiply(steps.size, space->a + i * steps.size * INT2_STEP_K, space->codes, space->tile);
        store_tile(call->problem, some, cols, space->tile, steps.begin > 0);
    }
}

static void multiply_block(const struct int2_call *call, const struct int2_space *space, struct span rows,
                           struct span cols) {
    const struct int2_matmul_problem *p = call->problem;
    const int64_t all = parts_of(p->packed, STEP_ROWS);
    for (int64_t r = 0; r < rows.size; r++)
        space->start[r] = minus_sum(p->a + (rows.begin + r) * p->lda, 4 * p->packed);
    int64_t s = 0;
    do { /* once even if there is no k: c still gets its zeros */
        const struct span steps = {s, least(SLAB_STEPS, all - s)};
        pack_a(p, rows, steps, space->a);
        for (int64_t j = 0; j < cols.size; j += INT2_COLS) {
            const struct span some = {cols.begin + j, least(INT2_COLS, cols.size - j)};
            pack_codes(p, some, steps, space->codes);
            multiply_panel(call, space, rows, some, steps);
        }
        s += steps.size;
    } while (s < all);
}

static void run_blocks(void *argument, int64_t begin, int64_t end) {
    struct int2_call *call = argument;
    struct int2_space space;
    if (!take_space(call, &space)) {
        atomic_store(&call->out_of_memory, true);
        return;
    }
    int2_begin();
    for (int64_t block = begin; block < end; block++) {
        const int64_t i = block % call->blocks_down * call->block_rows,
                      j = block / call->blocks_down * call->block_cols;
        multiply_block(call, &space, (struct span){i, least(call->block_rows, call->problem->m - i)},
                       (struct span){j, least(call->block_cols, call->problem->n - j)});
    }
    int2_end();
}

/* Equal blocks, some for each thread: how c is cut changes no sum. Every block packs its rows of a once more. */
static int64_t choose_blocks(struct int2_call *call, int64_t threads) {
    const struct int2_matmul_problem *p = call->problem;
    const int64_t down = parts_of(p->m, MOST_ROWS), rows = parts_of(p->m, down);
    const int64_t wanted = threads == 1 ? 1 : parts_of(MOST_THREADS_SHARE * threads, down);
    const int64_t most = parts_of(p->n, 4 * INT2_COLS), least_across = parts_of(p->n, MOST_COLS);
    const int64_t across = least_across > least(wanted, most) ? least_across : least(wanted, most);
    call->block_rows = parts_of(rows, INT2_ROWS) * INT2_ROWS;
    call->block_cols = parts_of(parts_of(p->n, across), INT2_COLS) * INT2_COLS;
    call->blocks_down = parts_of(p->m, call->block_rows);
    return call->blocks_down * parts_of(p->n, call->block_cols);
}

liger_status LIGER_CPU(int2_matmul)(liger_context *context, const struct int2_matmul_problem *problem,
                                    liger_stream stream) {
    (void)stream;
    const bool small =
        (double)problem->m * (double)problem->n * (double)problem->packed < 1e6; /* some 10 us of one core */
    struct int2_call call = {.problem = problem};
    const int64_t blocks = choose_blocks(&call, small ? 1 : liger_thread_count(context));
    atomic_init(&call.out_of_memory, false);
    liger_parallel_for(context, blocks, 1, run_blocks, &call);
    LIGER_REQUIRE(!atomic_load(&call.out_of_memory), LIGER_ERR_OOM,
                  "int2_matmul: no memory for the packed panels of a [%lld, %lld] x [%lld, %lld] product",
                  (long long)problem->m, (long long)problem->packed * 4, (long long)problem->packed * 4,
                  (long long)problem->n);
    return LIGER_OK;
}
