/* gemm_cpu.c - matrix products on the CPU: a BLAS for f32 if there is one, else our own packed kernels.
 *
 * The result is cut into blocks, one task each. A task goes through k slab by slab, packs its rows of a and, a few
 * panels at a time, its columns of b into its thread's scratch (about 7 MB at most, see scratch.h) and multiplies them.
 * Every element of c is one sum over k = 0, 1, ... in one order, whatever the blocks and the number of threads: same inputs,
 * same bits. (A BLAS promises that only for the same number of its own threads.) Which kernel:
 *
 *   f32         sgemm of the BLAS that blas.h finds or prefers, if all sizes fit into an int; else the f32 kernel
 *   bf16        AMX tiles or vdpbf16ps where the set has them; else widened to f32 while packed, and the f32 kernel
 *   f16         widened to f32 while packed, and the f32 kernel */
#include <limits.h>
#include <stdatomic.h>

#include "liger/core/context.h"
#include "liger/core/fail.h"
#include "liger/cpu/blas.h"
#include "liger/cpu/isa.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/scratch.h"
#include "liger/cpu/simd.h"
#include "liger/ops/gemm/gemm_kernel_f32.h"
#include "liger/ops/gemm/gemm_problem.h"

#if defined(__AMX_BF16__)
#include "liger/ops/gemm/gemm_kernel_amx.h"
#define BF16_KERNEL bf16_kernel
#elif defined(__AVX512BF16__)
#include "liger/ops/gemm/gemm_kernel_bf16.h"
#define BF16_KERNEL bf16_kernel
#else
#define BF16_KERNEL f32_kernel
#endif

/* A task has up to BLOCK_MAX rows, and as many columns where k has several slabs and all sums wait for the next one. A
 * packed element of b is then used up to 1024 times. The packed rows of a stream from the L3: at 8 MB per thread, twice
 * as much as here, the product of two threads on 32 MB was a tenth slower. */
enum { BLOCK_MAX = 1024, PACKED_A_MAX = 4 << 20, PACKED_B_MAX = 1 << 20, GROUP_MAX = 16, CALLS_AHEAD = 10 };

struct gemm_call {
    const struct gemm_problem *problem;
    const struct packed_kernel *kernel;
    struct gemm_factor a, b;
    int64_t block_rows, block_cols; /* multiples of the kernel's tile */
    int64_t blocks_down;
    int64_t group; /* panels of b that are packed at a time */
    atomic_bool out_of_memory;
};

/* ---- c from a finished tile --------------------------------------------------------------------------------------- */

LIGER_TEMPLATE v_f32 finish(liger_dtype t, liger_dtype tc, const struct gemm_problem *problem, v_f32 sum, int64_t i,
                            int64_t j, int n) {
    const int64_t at = i * problem->ldc + j;
    if (problem->bias)
        sum = v_add(sum, n < V_LANES ? v_load_tail(t, problem->bias, j, n) : v_load(t, problem->bias, j));
    if (problem->accumulate)
        sum = v_add(sum, n < V_LANES ? v_load_tail(tc, problem->c, at, n) : v_load(tc, problem->c, at));
    return sum;
}

LIGER_TEMPLATE void store_rows(liger_dtype t, liger_dtype tc, const struct gemm_problem *problem, struct gemm_span rows,
                               struct gemm_span cols, const float *tile, int64_t tile_cols) {
    for (int64_t r = 0; r < rows.size; r++, tile += tile_cols) {
        const int64_t i = rows.begin + r, at = i * problem->ldc + cols.begin;
        int64_t j = 0;
        for (; j + V_LANES <= cols.size; j += V_LANES)
            v_store(tc, problem->c, at + j, finish(t, tc, problem, v_load_f32(tile + j), i, cols.begin + j, V_LANES));
        const int rest = (int)(cols.size - j);
        if (rest > 0)
            v_store_tail(tc, problem->c, at + j, rest,
                         finish(t, tc, problem, v_load_f32(tile + j), i, cols.begin + j, rest));
    }
}

static void store_tile(const struct gemm_problem *problem, struct gemm_span rows, struct gemm_span cols,
                       const float *tile, int64_t tile_cols) {
    if (problem->c_dtype == LIGER_F32)
        LIGER_FOR_FLOAT(problem->dtype, store_rows(LIGER_T, LIGER_F32, problem, rows, cols, tile, tile_cols))
    else LIGER_FOR_FLOAT(problem->dtype, store_rows(LIGER_T, LIGER_T, problem, rows, cols, tile, tile_cols))
}

/* ---- one block of c ----------------------------------------------------------------------------------------------- */

/* A thread's scratch: a slab of the block's rows of a, of a few panels of b, and the sums. Of these there is one tile per
 * place in the block where k has several slabs, else a single one. */
struct workspace {
    char *a, *b;
    float *tiles;
};

static bool take_workspace(const struct gemm_call *call, struct workspace *space) {
    const struct packed_kernel *kernel = call->kernel;
    const int64_t k = call->problem->k, packed_k = gemm_round_up(gemm_min(k, kernel->slab), kernel->step);
    const int64_t a_bytes = gemm_round_up(call->block_rows * packed_k * kernel->packed_size, 4096);
    const int64_t b_bytes = gemm_round_up(call->group * kernel->tile_cols * packed_k * kernel->packed_size, 4096);
    const int64_t tiles =
        k > kernel->slab ? call->block_rows * call->block_cols : kernel->tile_rows * kernel->tile_cols;
    char *memory = cpu_thread_scratch((size_t)(a_bytes + b_bytes) + (size_t)tiles * sizeof(float));
    *space = (struct workspace){.b = memory, .a = memory + b_bytes, .tiles = (float *)(memory + b_bytes + a_bytes)};
    return memory != NULL;
}

struct slab {
    struct gemm_span rows, k;
    int64_t packed_k;
    bool first, last;
    const char *a; /* packed */
};

struct panel {
    struct gemm_span cols;
    const char *b; /* packed */
    float *tiles;
};

/* The memory from which the next panels of b will be packed. Without asking for it ahead a product with few rows waits
 * for b at every panel, as nothing else is done while packing. */
static struct gemm_ahead ahead_of(const struct gemm_factor *b, struct gemm_span cols, struct gemm_span k) {
    const struct gemm_span outer = b->along ? cols : k, inner = b->along ? k : cols;
    const int64_t size = b->dtype == LIGER_F32 ? 4 : 2, run = gemm_ceil_div(inner.size * size, 64);
    if (run == 0) return (struct gemm_ahead){.left = 1, .run = 1};
    return (struct gemm_ahead){
        .at = (const char *)b->data + (outer.begin * b->stride + inner.begin) * size,
        .left = run,
        .count = outer.size * run,
        .run = run,
        .stride = b->stride * size,
    };
}

/* What one call of multiply asks for, of `calls` that are still to come for these panels. Only the last of them ask: what
 * lies in the L2 for longer is driven out by the panels of a. */
static struct gemm_ahead take_share(const struct gemm_call *call, struct gemm_ahead *ahead, int64_t calls) {
    struct gemm_ahead share = *ahead;
    share.count = calls > CALLS_AHEAD * call->group ? 0 : ahead->count / calls;
    if (share.count) gemm_skip(ahead, share.count);
    return share;
}

/* The block's rows times one panel of b, which stays in the L2 while the panels of a pass by. */
static void multiply_panel(const struct gemm_call *call, const struct slab *slab, const struct panel *panel,
                           struct gemm_ahead *ahead, int64_t calls) {
    const struct packed_kernel *kernel = call->kernel;
    const int64_t height = kernel->tile_rows, size = height * kernel->tile_cols, count = slab->rows.size;
    const bool keep = !(slab->first && slab->last);
    float *tile = panel->tiles;
    for (int64_t i = 0; i * height < count; i++, tile += keep ? size : 0) {
        const struct gemm_span rows = {slab->rows.begin + i * height, gemm_min(height, count - i * height)};
        const char *a = slab->a + i * height * slab->packed_k * kernel->packed_size;
        if (!slab->first && (i + 1) * height < count)
            for (int64_t j = 0; j < size; j += 16) __builtin_prefetch(tile + size + j, 0, 3);
        kernel->multiply(slab->packed_k, a, panel->b, tile, !slab->first, rows.size,
                         take_share(call, ahead, calls - i));
        if (slab->last) store_tile(call->problem, rows, panel->cols, tile, kernel->tile_cols);
    }
}

static void multiply_slab(const struct gemm_call *call, const struct workspace *space, const struct slab *slab,
                          struct gemm_span cols) {
    const struct packed_kernel *kernel = call->kernel;
    const int64_t width = kernel->tile_cols, group_cols = call->group * width;
    const int64_t column_sums = slab->first && slab->last ? 0 : call->block_rows;
    const int64_t tiles_down = gemm_ceil_div(slab->rows.size, kernel->tile_rows);
    kernel->pack_a(&call->a, slab->rows, slab->k, space->a);
    for (int64_t j = 0; j < cols.size; j += group_cols) {
        const struct gemm_span group = {cols.begin + j, gemm_min(group_cols, cols.size - j)};
        const struct gemm_span next = {group.begin + group.size, gemm_min(group_cols, cols.size - j - group.size)};
        struct gemm_ahead ahead = ahead_of(&call->b, next, slab->k);
        kernel->pack_b(&call->b, group, slab->k, space->b);
        for (int64_t p = 0; p < group.size; p += width) {
            const struct panel panel = {
                .cols = {group.begin + p, gemm_min(width, group.size - p)},
                .b = space->b + p * slab->packed_k * kernel->packed_size,
                .tiles = space->tiles + (j + p) * column_sums,
            };
            multiply_panel(call, slab, &panel, &ahead, gemm_ceil_div(group.size - p, width) * tiles_down);
        }
    }
}

static void multiply_block(const struct gemm_call *call, const struct workspace *space, struct gemm_span rows,
                           struct gemm_span cols) {
    const struct packed_kernel *kernel = call->kernel;
    const int64_t k = call->problem->k, slabs = k > 0 ? gemm_ceil_div(k, kernel->slab) : 1;
    const int64_t size = gemm_round_up(gemm_ceil_div(k, slabs), kernel->step);
    int64_t p = 0;
    do { /* once even if k is 0: c still gets its bias or its zeros */
        const struct gemm_span depth = {p, gemm_min(size, k - p)};
        p += depth.size;
        const struct slab slab = {
            .rows = rows,
            .k = depth,
            .packed_k = gemm_round_up(depth.size, kernel->step),
            .first = depth.begin == 0,
            .last = p == k,
            .a = space->a,
        };
        multiply_slab(call, space, &slab, cols);
    } while (p < k);
}

static void run_blocks(void *argument, int64_t begin, int64_t end) {
    struct gemm_call *call = argument;
    const struct gemm_problem *problem = call->problem;
    struct workspace space;
    if (!take_workspace(call, &space)) {
        atomic_store(&call->out_of_memory, true);
        return;
    }
    if (call->kernel->begin) call->kernel->begin();
    for (int64_t block = begin; block < end; block++) {
        const int64_t i = block % call->blocks_down * call->block_rows,
                      j = block / call->blocks_down * call->block_cols;
        const struct gemm_span rows = {i, gemm_min(call->block_rows, problem->m - i)};
        const struct gemm_span cols = {j, gemm_min(call->block_cols, problem->n - j)};
        multiply_block(call, &space, rows, cols);
    }
    if (call->kernel->end) call->kernel->end();
}

/* ---- our own product ---------------------------------------------------------------------------------------------- */

/* Where the lines of b are neighbours, a panel is a few bytes of every row: several at a time use a page's address and a
 * row's neighbouring lines together. */
static int64_t choose_group(const struct gemm_call *call) {
    const struct packed_kernel *kernel = call->kernel;
    const int64_t depth = gemm_min(call->problem->k + 1, kernel->slab);
    const int64_t fit = PACKED_B_MAX / (depth * kernel->tile_cols * kernel->packed_size);
    if (call->b.along || fit < 2) return 1;
    return gemm_min(gemm_min(fit, GROUP_MAX), gemm_ceil_div(call->problem->n, kernel->tile_cols));
}

/* Equal blocks, and more of them until 95 % of the threads' time is used. */
static int64_t choose_blocks(struct gemm_call *call, int64_t threads) {
    const struct gemm_problem *problem = call->problem;
    const struct packed_kernel *kernel = call->kernel;
    const int64_t height = kernel->tile_rows, width = kernel->tile_cols;
    const int64_t row_bytes = gemm_min(problem->k + 1, kernel->slab) * kernel->packed_size;
    int64_t down = gemm_ceil_div(problem->m, gemm_min(BLOCK_MAX, PACKED_A_MAX / row_bytes));
    int64_t across = problem->k > kernel->slab ? gemm_ceil_div(problem->n, BLOCK_MAX) : 1;
    for (;;) {
        call->block_rows = gemm_round_up(gemm_ceil_div(problem->m, down), height);
        call->block_cols = gemm_round_up(gemm_ceil_div(problem->n, across), width);
        call->blocks_down = gemm_ceil_div(problem->m, call->block_rows);
        const int64_t blocks = call->blocks_down * gemm_ceil_div(problem->n, call->block_cols);
        const int64_t rounds = gemm_ceil_div(blocks, threads);
        if (blocks * 20 >= rounds * threads * 19) return blocks;
        if (call->block_cols >= call->block_rows && call->block_cols > 2 * width) across++;
        else if (call->block_rows > 4 * height) down++;
        else return blocks;
    }
}

static liger_status multiply_packed(liger_context *context, const struct gemm_problem *problem) {
    const bool small = (double)problem->m * (double)problem->n * (double)problem->k < 1e6; /* some 10 us of one core */
    struct gemm_call call = {
        .problem = problem,
        .kernel = problem->dtype == LIGER_BF16 ? &BF16_KERNEL : &f32_kernel,
        .a = {.data = problem->a, .stride = problem->lda, .dtype = problem->dtype, .along = !problem->transpose_a},
        .b = {.data = problem->b, .stride = problem->ldb, .dtype = problem->dtype, .along = problem->transpose_b},
    };
    call.group = choose_group(&call);
    const int64_t blocks = choose_blocks(&call, small ? 1 : liger_thread_count(context));
    atomic_init(&call.out_of_memory, false);
    liger_parallel_for(context, blocks, 1, run_blocks, &call);
    LIGER_REQUIRE(!atomic_load(&call.out_of_memory), LIGER_ERR_OOM,
                  "gemm: no memory for the packed panels of a [%lld, %lld] x [%lld, %lld] product",
                  (long long)problem->m, (long long)problem->k, (long long)problem->k, (long long)problem->n);
    return LIGER_OK;
}

#if defined(__AVX512F__)
enum { HAS_AVX512 = true };
#else
enum { HAS_AVX512 = false };
#endif

/* ---- BLAS --------------------------------------------------------------------------------------------------------- */

/* A row stride as BLAS wants it: an int, and no less than the length of a row even if there is only one row. */
static bool blas_stride(int64_t stride, int64_t rows, int64_t cols, int *out) {
    const int64_t safe = rows <= 1 && stride < cols ? cols : stride;
    *out = (int)safe;
    return rows <= INT_MAX && cols <= INT_MAX && safe >= cols && safe <= INT_MAX;
}

static void start_from_bias(void *argument, int64_t begin, int64_t end) {
    const struct gemm_problem *problem = argument;
    for (int64_t i = begin; i < end; i++) {
        float *c = (float *)problem->c + i * problem->ldc;
        memcpy(c, problem->bias, (size_t)problem->n * sizeof *c);
    }
}

/* Row-major c = op(a) · op(b) is column-major c' = op(b)' · op(a)'. The bias goes into c first, and beta = 1 keeps it.
 * Runs on the threads of the BLAS. False, with nothing done, if there is none or if a size or a stride is not for it. */
static bool multiply_by_blas(liger_context *context, const struct gemm_problem *problem) {
    const struct blas *blas = blas_find(HAS_AVX512);
    const bool ta = problem->transpose_a, tb = problem->transpose_b;
    const int64_t m = problem->m, n = problem->n, k = problem->k;
    const float one = 1.0f, beta = problem->accumulate || problem->bias ? 1.0f : 0.0f;
    int lda, ldb, ldc;
    if (!blas->sgemm || k == 0) return false;
    if (!blas_stride(problem->lda, ta ? k : m, ta ? m : k, &lda)) return false;
    if (!blas_stride(problem->ldb, tb ? n : k, tb ? k : n, &ldb)) return false;
    if (!blas_stride(problem->ldc, m, n, &ldc)) return false;
    if (problem->bias) liger_parallel_for(context, m, 65536 / n + 1, start_from_bias, (void *)problem);
    blas->sgemm(tb ? "T" : "N", ta ? "T" : "N", &(int){(int)n}, &(int){(int)m}, &(int){(int)k}, &one, problem->b, &ldb,
                problem->a, &lda, &beta, problem->c, &ldc);
    return true;
}

/* ---- the slot ----------------------------------------------------------------------------------------------------- */

liger_status LIGER_CPU(gemm)(liger_context *context, const struct gemm_problem *problem, liger_stream stream) {
    (void)stream;
    if (problem->m == 0 || problem->n == 0) return LIGER_OK;
    if (problem->dtype == LIGER_F32 && multiply_by_blas(context, problem)) return LIGER_OK;
    return multiply_packed(context, problem);
}
