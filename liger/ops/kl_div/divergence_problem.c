/* divergence_problem.c - see divergence_problem.h. */
#include "liger/ops/kl_div/divergence_problem.h"

#include "liger/core/check.h"
#include "liger/ops/cross_entropy/cross_entropy_problem.h"

/* The workspace begins with what cross entropy's count writes; the partial sums follow. */
enum { COUNTS_BYTES = 256 };

size_t divergence_workspace(const struct door_call *call) {
    const struct divergence_tiles tiles = divergence_tiles_of(call->size[ROWS], call->size[COLS]);
    return COUNTS_BYTES + (size_t)tiles.count * sizeof(float);
}

static bool is_none(const struct door_call *call) { return call->size[REDUCTION] == LIGER_REDUCTION_NONE; }

static liger_status is_matrix(const struct door_call *call, const liger_tensor *tensor, const char *what) {
    LIGER_REQUIRE(tensor->ndim == 2, LIGER_ERR_SHAPE, "%s has %d dimensions, but with reduction NONE it must have 2",
                  what, tensor->ndim);
    for (int d = 0; d < 2; d++)
        LIGER_REQUIRE(tensor->shape[d] == call->size[ROWS + d], LIGER_ERR_SHAPE,
                      "%s.shape[%d] is %lld but x.shape[%d] is %lld", what, d, (long long)tensor->shape[d], d,
                      (long long)call->size[ROWS + d]);
    return LIGER_OK;
}

liger_status divergence_fits_upstream(const struct door_call *call, const liger_tensor *upstream, const char *what) {
    if (liger_tensor_elements(upstream) == 1) return LIGER_OK;
    LIGER_REQUIRE(is_none(call), LIGER_ERR_SHAPE, "%s has %lld elements, but must have 1 unless reduction is NONE",
                  what, (long long)liger_tensor_elements(upstream));
    if (upstream->ndim == 1) return liger_check_vector(upstream, what, call->size[ROWS]);
    return is_matrix(call, upstream, what);
}

liger_status divergence_fits_loss(const struct door_call *call, const liger_tensor *loss, const char *what) {
    if (is_none(call)) {
        LIGER_REQUIRE(loss->dtype == LIGER_F32, LIGER_ERR_DTYPE, "%s is %s, but with reduction NONE it must be f32",
                      what, liger_dtype_name(loss->dtype));
        return is_matrix(call, loss, what);
    }
    LIGER_REQUIRE(liger_tensor_elements(loss) == 1, LIGER_ERR_SHAPE,
                  "%s has %lld elements, but must have 1 unless reduction is NONE", what,
                  (long long)liger_tensor_elements(loss));
    return LIGER_OK;
}

static liger_status place_upstream(const liger_tensor *upstream, struct divergence_problem *d) {
    if (d->upstream.data == NULL) return LIGER_OK;
    d->upstream_step = liger_tensor_elements(upstream) > 1 && upstream->ndim == 2;
    if (d->upstream_step != 0) return LIGER_OK;
    const liger_tensor column = {.data = upstream->data, /* one for each row, or one for all */
                                 .dtype = upstream->dtype,
                                 .ndim = 2,
                                 .shape = {d->rows, 1},
                                 .stride = {liger_tensor_elements(upstream) > 1, 1}};
    return liger_fold_rows(&column, "upstream", &d->upstream);
}

static liger_status count(liger_context *context, const char *op, const struct divergence_problem *d, void *counts,
                          liger_stream stream) {
    const struct cross_entropy_count_problem problem = {
        .target = d->labels,
        .target_dtype = d->label_dtype,
        .rows = d->rows,
        .any_label = true,
        .ignore_index = d->ignore_index,
        .counts = counts,
        .op = op,
    };
    return context->kernels->cross_entropy_count(context, &problem, stream);
}

liger_status divergence_begin(liger_context *context, const struct door_call *call, const liger_tensor *upstream,
                              struct divergence_problem *d, liger_stream stream, bool *needed) {
    struct cross_entropy_counts *counts = (struct cross_entropy_counts *)d->partials;
    const bool by_rows = d->reduction == LIGER_REDUCTION_MEAN || d->reduction == LIGER_REDUCTION_BATCHMEAN;
    const double of_a_row = d->reduction == LIGER_REDUCTION_MEAN ? (double)call->size[COLS] : 1;
    const bool is_empty = !door_matrix(call, &d->dtype, &d->rows, &d->cols);
    d->tiles = divergence_tiles_of(d->rows, d->cols);
    d->partials = (float *)((char *)d->partials + COUNTS_BYTES);
    LIGER_TRY(place_upstream(upstream, d));
    if (d->reduction != LIGER_REDUCTION_NONE) d->total = d->loss.data, d->loss.data = NULL;
    *needed = d->total || (!is_empty && (d->loss.data || d->dx.data));
    d->share = 1.0f;
    if (!*needed || !by_rows || is_empty) return LIGER_OK;
    d->share = (float)(1 / (d->labels ? of_a_row : of_a_row * (double)d->rows));
    if (d->labels == NULL) return LIGER_OK;
    d->valid = &counts->valid;
    return count(context, call->door->function, d, counts, stream);
}
