/* linear_slices.c - the loop over slices of the vocabulary. */
#include "liger/chunk/linear_slices.h"

#include "liger/chunk/linear_in_place.h"
#include "liger/core/fail.h"
#include "liger/ops/column_sum/column_sum_problem.h"
#include "liger/ops/gemm/gemm_problem.h"
#include "liger/ops/logprob/logprob_problem.h"
#include "liger/ops/row_selection/row_selection_problem.h"

static int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

/* 128 MB is 4096 columns of 16384 rows: products that long keep a GPU busy, and adding to an f32 dx after each costs it a
 * tenth of the time that the product takes. A CPU's last-level cache holds some 28 MB. */
enum { GPU_STEP = 128, CPU_STEP = 64, GPU_BYTES = 128 << 20, CPU_BYTES = 28 << 20 };

static int64_t column_bytes(liger_dtype dtype, int64_t rows) {
    return (rows ? rows : 1) * (int64_t)liger_dtype_size(dtype);
}

int64_t linear_slices_even(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t vocab,
                           int64_t bytes) {
    const int64_t step = context->device == LIGER_DEVICE_CPU ? CPU_STEP : GPU_STEP;
    const int64_t most = bytes / column_bytes(dtype, rows) / step * step, cols = most > step ? most : step;
    const int64_t slices = (vocab + cols - 1) / cols;
    return round_up((vocab + slices - 1) / slices, step);
}

int64_t linear_slices_cols(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden, int64_t vocab,
                           bool dx) {
    const int64_t budget = linear_budget(context), usual = context->device == LIGER_DEVICE_CPU ? CPU_BYTES : GPU_BYTES;
    const int64_t bytes = budget && budget < usual ? budget : usual,
                  sum = dx ? rows * hidden * (int64_t)sizeof(float) : 0;
    const int64_t spared = budget && sum > budget - bytes ? budget - bytes : sum; /* one slice needs no sum */
    if (vocab <= (bytes + spared) / column_bytes(dtype, rows)) return vocab;
    return linear_slices_even(context, dtype, rows, vocab, bytes);
}

/* Whether dx is summed up in scratch: over slices, in more digits than it has, or because its rows lie elsewhere. What has
 * one slice is rounded by its product. */
static bool needs_sum(const struct linear_slices *slices) {
    const bool several = slices->slice_cols < slices->head.vocab && slices->dx_dtype != LIGER_F32;
    return slices->dx != NULL && (several || slices->place_of != NULL);
}

/* Scratch, in this order. */
struct layout {
    size_t products, sums, dx, in_place;
};

static struct layout layout_of(const liger_context *context, const struct linear_slices *slices) {
    const size_t sums = slices->dbias ? column_sum_workspace(slices->rows, slices->slice_cols) : 0;
    const size_t dx = needs_sum(slices) ? (size_t)(slices->rows * slices->head.hidden) * sizeof(float) : 0;
    return (struct layout){
        .products = context->device == LIGER_DEVICE_CPU ? 0 : GEMM_WORKSPACE_BYTES,
        .sums = (size_t)round_up((int64_t)sums, 256),
        .dx = (size_t)round_up((int64_t)dx, 256),
        .in_place = slices->in_place ? linear_in_place_workspace(slices->head.dtype, slices->rows, slices->head.vocab,
                                                                 slices->in_place)
                                     : 0,
    };
}

size_t linear_slices_workspace(const liger_context *context, const struct linear_slices *slices) {
    const struct layout layout = layout_of(context, slices);
    return layout.products + layout.sums + layout.dx + layout.in_place;
}

liger_status linear_slices_from_rows(liger_context *context, void *state, int64_t first, int64_t cols, void *logits,
                                     int64_t stride, liger_stream stream) {
    struct logits_gradient_problem problem = *(const struct logits_gradient_problem *)state;
    problem.first = first;
    problem.cols = cols;
    problem.logits = logits;
    problem.logits_stride = stride;
    return context->kernels->logits_gradient(context, &problem, stream);
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static liger_status round_dx(liger_context *context, const struct linear_slices *slices, const float *sum,
                             liger_stream stream) {
    const struct row_scatter_problem scatter = {
        .x_dtype = LIGER_F32,
        .y_dtype = slices->dx_dtype,
        .rows = slices->dx_rows,
        .cols = slices->head.hidden,
        .x = sum,
        .x_stride = slices->head.hidden,
        .place_of = slices->place_of,
        .y = slices->dx,
        .y_stride = slices->dx_stride,
    };
    return context->kernels->row_scatter(context, &scatter, stream);
}

/* No rows: the gradients of the parameters are zero. */
static liger_status run_empty(liger_context *context, const struct linear_slices *slices, liger_stream stream) {
    const int64_t vocab = slices->head.vocab;
    LIGER_TRY(linear_zero(context, slices->dweight, slices->dweight_dtype, vocab * slices->head.hidden, stream));
    LIGER_TRY(linear_zero(context, slices->dbias, LIGER_F32, vocab, stream));
    return slices->dx && slices->dx_rows > 0 ? round_dx(context, slices, NULL, stream) : LIGER_OK;
}

liger_status linear_slices_run(liger_context *context, const struct linear_slices *slices, liger_stream stream) {
    const struct layout layout = layout_of(context, slices);
    struct linear_head head = slices->head;
    head.product_bytes = layout.products, head.sum_bytes = layout.sums;
    float *sum = needs_sum(slices) ? (float *)((char *)head.workspace + layout.products + layout.sums) : NULL;
    struct linear_result dx = {slices->dx, slices->dx_dtype, slices->dx_stride, false};
    if (sum != NULL) dx = (struct linear_result){sum, LIGER_F32, head.hidden, false};
    const struct linear_result dweight = {slices->dweight, slices->dweight_dtype, head.hidden, false};
    if (slices->rows == 0) return run_empty(context, slices, stream);
    for (int64_t first = 0; first < head.vocab; first += slices->slice_cols) {
        const int64_t left = head.vocab - first;
        const struct linear_part part = {0, slices->rows, first, left < slices->slice_cols ? left : slices->slice_cols};
        if (!slices->kept) LIGER_TRY(linear_head_logits(context, &head, &part, stream));
        LIGER_TRY(slices->gradient(context, slices->state, first, part.cols, head.logits, head.logits_stride, stream));
        if (slices->dx) LIGER_TRY(linear_head_dx(context, &head, &part, dx, stream));
        if (slices->dbias) LIGER_TRY(linear_head_dbias(context, &head, &part, slices->dbias, false, stream));
        if (slices->in_place)
            LIGER_TRY(linear_in_place_dweight(context, &head, part.rows, dweight, slices->in_place,
                                              (char *)head.workspace + layout.products + layout.sums + layout.dx,
                                              stream));
        else if (slices->dweight) LIGER_TRY(linear_head_dweight(context, &head, &part, dweight, stream));
        dx.accumulate = true;
    }
    return sum != NULL ? round_dx(context, slices, sum, stream) : LIGER_OK;
}
