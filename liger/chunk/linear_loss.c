/* linear_loss.c - the one loop over chunks of rows that every loss on top of a linear head shares. */
#include "liger/chunk/linear_loss.h"

#include "liger/chunk/linear_in_place.h"
#include "liger/chunk/linear_slices.h"
#include "liger/core/fail.h"
#include "liger/ops/column_sum/column_sum_problem.h"
#include "liger/ops/gemm/gemm_problem.h"

static int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/* Scratch of the products on a GPU: for a bias, and for cuBLASLt, which divides the long sums of a small dx among
 * multiprocessors: that takes 10 to 16 % off a loss of 64 to 256 rows. A dx of 1024 x 2048 keeps them busy without. */
static size_t gemm_workspace(const liger_context *context, const struct linear_loss *loss) {
    const int64_t busy = 1024 * 2048, rest = loss->chunk_rows ? loss->rows % loss->chunk_rows : 0;
    const int64_t smallest = rest ? rest : loss->chunk_rows;
    if (context->device == LIGER_DEVICE_CPU) return 0;
    return loss->head.bias || smallest * loss->head.hidden < busy ? GEMM_WORKSPACE_BYTES : 0;
}

static size_t sum_workspace(const struct linear_loss *loss) {
    const size_t sums = loss->dbias ? column_sum_workspace(loss->chunk_rows, loss->head.vocab) : 0;
    return (size_t)round_up((int64_t)sums, 256);
}

static size_t slice_workspace(const struct linear_loss *loss) {
    return loss->slices ? linear_in_place_workspace(loss->head.dtype, loss->rows, loss->head.vocab, loss->slices) : 0;
}

size_t linear_loss_workspace(const liger_context *context, const struct linear_loss *loss) {
    return gemm_workspace(context, loss) + sum_workspace(loss) + slice_workspace(loss);
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* GEMMs of a GPU want full tiles, and 2048 rows of dx fill the multiprocessors of an H100 or H200 once or several times (tiles
 * of 128 x 256, 8 or 16 of them across). Beyond 6144 rows they get no faster, and adding to dweight costs little. */
enum { CPU_STEP = 16, GPU_STEP = 128, GPU_WAVE = 2048, MOST_ROWS = 6144 };

/* Rows whose logits take `bytes`. */
static int64_t rows_of_bytes(int64_t bytes, int64_t row_bytes, int64_t step) {
    const int64_t rows = bytes / row_bytes;
    return rows > MOST_ROWS ? MOST_ROWS : larger(rows / step * step, step);
}

/* Bytes of logits per chunk on a CPU, unless LIGER_LOSS_WORKSPACE_MB says otherwise. Every chunk reads all of W twice, and
 * reads and writes all of dW. Logits that do not fit into a last-level cache pass through memory instead, some five times:
 * written, read and replaced by the loss, read by two products. What moves fewer bytes (here divided by the vocabulary): a
 * cache's worth at a time, or as much as memory may cost, which is 10 % of the gradients and 16 MB, or 15 % of large ones.
 * At 256 x 2048 x 128256 in f32 one chunk of 131 MB takes 6.9 s on two cores with AVX2, six of 28 MB took 10.0. */
static int64_t cpu_logits_bytes(int64_t element, int64_t rows, int64_t hidden, int64_t vocab) {
    const int64_t cached = 28 << 20, gradients = (rows + vocab) * hidden * element;
    const int64_t allowed = larger(cached, larger(gradients / 10 + (16 << 20), gradients / 100 * 15));
    const int64_t few = rows_of_bytes(cached, vocab * element, CPU_STEP);
    const int64_t many = rows_of_bytes(allowed, vocab * element, CPU_STEP);
    const double per_chunk = (double)hidden * (double)(2 * element + 2 * (int64_t)sizeof(float)); /* rows without end */
    const double in_memory = 5.0 * (double)rows * (double)element;
    const double in_many = (double)((rows + many - 1) / many), in_few = (double)((rows + few - 1) / few);
    return in_many * per_chunk + in_memory < in_few * per_chunk ? allowed : cached;
}

static int64_t sum_bytes(int64_t rows, int64_t hidden) { return rows * hidden * (int64_t)sizeof(float); }

static bool fits_a_named_budget(const liger_context *context, int64_t bytes) {
    return context->loss_workspace_bytes == 0 || bytes <= context->loss_workspace_bytes;
}

int64_t linear_loss_chunk_rows(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden,
                               int64_t vocab, bool dweight) {
    const bool cpu = context->device == LIGER_DEVICE_CPU;
    const int64_t element = (int64_t)liger_dtype_size(dtype), step = cpu ? CPU_STEP : GPU_STEP;
    const int64_t wave = cpu ? step : GPU_WAVE, some = larger(vocab, 1);
    const int64_t budget = linear_budget(context),
                  bytes = budget ? budget : cpu_logits_bytes(element, rows, hidden, some);
    const int64_t chunk = rows_of_bytes(bytes, some * element, step);
    if (rows <= chunk) return rows;
    if (dweight && dtype != LIGER_F32 && rows <= hidden + chunk &&
        fits_a_named_budget(context, sum_bytes(vocab, hidden)))
        return rows; /* an f32 accumulator is as large as `hidden` rows */
    const int64_t chunks = (rows + chunk - 1) / chunk, even = (rows + chunks - 1) / chunks;
    const int64_t waves = round_up(even, wave);
    return waves <= chunk ? waves : round_up(even, step);
}

/* 16 bytes of any dtype. */
static int64_t pitch_of(int64_t vocab) { return round_up(vocab, 8); }

int64_t linear_loss_kept_rows(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden,
                              int64_t vocab) {
    const int64_t chunk = linear_loss_chunk_rows(context, dtype, rows, hidden, vocab, false);
    const int64_t row_bytes = larger(pitch_of(vocab), 1) * (int64_t)liger_dtype_size(dtype);
    const int64_t named = context->loss_workspace_bytes;
    return (named ? rows <= named / row_bytes : rows <= hidden + chunk) ? rows : chunk;
}

int64_t linear_loss_slice_cols(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden,
                               int64_t vocab, bool dx) {
    const int64_t element = (int64_t)liger_dtype_size(dtype), budget = context->loss_workspace_bytes;
    if (dtype == LIGER_F32 || fits_a_named_budget(context, sum_bytes(vocab, hidden)) || rows >= vocab) return vocab;
    if (rows == 0 || vocab <= budget / (rows * element)) return vocab;
    const int64_t products = context->device == LIGER_DEVICE_CPU ? 0 : GEMM_WORKSPACE_BYTES;
    const int64_t sum = dx ? sum_bytes(rows, hidden) : 0;
    const int64_t cols = linear_slices_even(context, dtype, rows, vocab, budget - sum - products);
    const int64_t step = context->device == LIGER_DEVICE_CPU ? CPU_STEP : GPU_STEP;
    const int64_t of_step = (step * pitch_of(vocab) + rows - 1) / rows; /* a chunk of the first pass, at least */
    const int64_t least = cols > of_step ? cols : round_up(of_step, 8);
    return least < vocab ? least : vocab;
}

void linear_loss_share(const liger_context *context, struct linear_loss *loss, int64_t elements) {
    const int64_t step = context->device == LIGER_DEVICE_CPU ? CPU_STEP : GPU_STEP, vocab = loss->head.vocab;
    const int64_t pitch = pitch_of(vocab) <= elements ? pitch_of(vocab) : vocab, fit = elements / pitch;
    loss->head.logits_stride = pitch;
    loss->chunk_rows = fit < step ? fit : rows_of_bytes(fit, 1, step);
}

liger_status linear_loss_run(liger_context *context, const struct linear_loss *loss, liger_stream stream) {
    struct linear_head head = loss->head;
    head.product_bytes = gemm_workspace(context, loss);
    head.sum_bytes = sum_workspace(loss);
    const struct linear_result dx = {loss->dx, head.dtype, loss->dx_stride, false};
    for (int64_t first = 0; first < loss->rows; first += loss->chunk_rows) {
        const int64_t left = loss->rows - first;
        const struct linear_part chunk = {first, left < loss->chunk_rows ? left : loss->chunk_rows, 0, head.vocab};
        const struct linear_result dweight = {loss->dweight, loss->dweight_dtype, head.hidden, first > 0};
        if (!loss->step_makes_logits) LIGER_TRY(linear_head_logits(context, &head, &chunk, stream));
        LIGER_TRY(loss->step(context, loss->state, first, chunk.rows, head.logits, head.logits_stride, stream));
        if (loss->dx) LIGER_TRY(linear_head_dx(context, &head, &chunk, dx, stream));
        if (loss->dbias) LIGER_TRY(linear_head_dbias(context, &head, &chunk, loss->dbias, first > 0, stream));
        if (loss->slices)
            LIGER_TRY(linear_in_place_dweight(context, &head, chunk.rows, dweight, loss->slices,
                                              (char *)head.workspace + head.product_bytes + head.sum_bytes, stream));
        else if (loss->dweight) LIGER_TRY(linear_head_dweight(context, &head, &chunk, dweight, stream));
    }
    return LIGER_OK;
}
