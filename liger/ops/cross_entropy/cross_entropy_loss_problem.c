/* cross_entropy_loss_problem.c - see cross_entropy_loss_problem.h. */
#include "liger/ops/cross_entropy/cross_entropy_loss_problem.h"

#include "liger/core/check.h"
#include "liger/ops/cross_entropy/cross_entropy.h"

liger_status cross_entropy_fits_result(const struct door_call *call, const liger_tensor *result, const char *what) {
    if (call->size[REDUCTION] == LIGER_REDUCTION_NONE) return liger_check_vector(result, what, call->size[ROWS]);
    LIGER_REQUIRE(liger_tensor_elements(result) == 1, LIGER_ERR_SHAPE,
                  "%s has %lld elements, but must have 1 unless reduction is NONE", what,
                  (long long)liger_tensor_elements(result));
    return LIGER_OK;
}

void cross_entropy_finish(const struct door_call *call, const liger_tensor *upstream,
                          struct cross_entropy_loss_problem *loss) {
    loss->op = call->door->function;
    loss->dtype = call->t;
    loss->rows = call->size[ROWS];
    loss->vocab = call->size[VOCAB];
    loss->upstream_by_row = loss->upstream && liger_tensor_elements(upstream) > 1;
}

/* ---- workspace ---------------------------------------------------------------------------------------------------- */

struct layout {
    size_t loss, z_loss, accuracy, bytes;
};

static size_t reserve(struct layout *layout, bool present, int64_t rows) {
    const size_t offset = layout->bytes;
    if (present) layout->bytes += door_padded((size_t)rows * sizeof(float));
    return offset;
}

static struct layout layout_of(int64_t rows, bool loss, bool z_loss, bool accuracy) {
    struct layout layout = {.bytes = 256}; /* the counts */
    layout.loss = reserve(&layout, loss, rows);
    layout.z_loss = reserve(&layout, z_loss, rows);
    layout.accuracy = reserve(&layout, accuracy, rows);
    return layout;
}

size_t cross_entropy_loss_workspace(int64_t rows, bool loss, bool z_loss, bool accuracy) {
    return layout_of(rows, loss, z_loss, accuracy).bytes;
}

/* The array of rows of each result; NULL where there is none. */
struct row_arrays {
    float *loss, *z_loss, *accuracy;
};

static struct row_arrays arrays_of(const struct cross_entropy_loss_problem *loss) {
    char *base = loss->workspace;
    const struct layout layout =
        layout_of(loss->rows, loss->loss != NULL, loss->z_loss != NULL, loss->accuracy != NULL);
    return (struct row_arrays){
        .loss = loss->loss ? (float *)(base + layout.loss) : NULL,
        .z_loss = loss->z_loss ? (float *)(base + layout.z_loss) : NULL,
        .accuracy = loss->accuracy ? (float *)(base + layout.accuracy) : NULL,
    };
}

/* ---- the three steps ---------------------------------------------------------------------------------------------- */

liger_status cross_entropy_run_count(liger_context *context, const struct cross_entropy_loss_problem *loss,
                                     liger_stream stream) {
    const struct cross_entropy_count_problem problem = {
        .target = loss->target,
        .target_dtype = loss->target_dtype,
        .rows = loss->rows,
        .vocab = loss->vocab,
        .ignore_index = loss->ignore_index,
        .weight = loss->weight,
        .counts = loss->counts,
        .op = loss->op,
    };
    return context->kernels->cross_entropy_count(context, &problem, stream);
}

struct cross_entropy_rows_problem cross_entropy_rows_of(const struct cross_entropy_loss_problem *loss) {
    const struct row_arrays arrays = arrays_of(loss);
    return (struct cross_entropy_rows_problem){
        .dtype = loss->dtype,
        .target_dtype = loss->target_dtype,
        .rows = loss->rows,
        .vocab = loss->vocab,
        .target = loss->target,
        .weight = loss->weight,
        .counts = loss->counts,
        .ignore_index = loss->ignore_index,
        .label_smoothing = loss->label_smoothing,
        .lse_square_scale = loss->lse_square_scale,
        .softcap = loss->softcap,
        .mean = loss->reduction == LIGER_REDUCTION_MEAN,
        .upstream = loss->upstream,
        .upstream_stride = loss->upstream_by_row,
        .loss = arrays.loss,
        .z_loss = arrays.z_loss,
        .accuracy = arrays.accuracy,
        .predicted = loss->predicted,
    };
}

liger_status cross_entropy_run_reduce(liger_context *context, const struct cross_entropy_loss_problem *loss,
                                      liger_stream stream) {
    const struct row_arrays arrays = arrays_of(loss);
    if (!loss->loss && !loss->z_loss && !loss->accuracy) return LIGER_OK;
    const struct cross_entropy_reduce_problem problem = {
        .rows = loss->rows,
        .counts = loss->counts,
        .loss = arrays.loss,
        .z_loss = arrays.z_loss,
        .accuracy = arrays.accuracy,
        .loss_out = loss->loss,
        .z_loss_out = loss->z_loss,
        .accuracy_out = loss->accuracy,
        .loss_dtype = loss->loss_dtype,
        .z_loss_dtype = loss->z_loss_dtype,
        .unreduced = loss->reduction == LIGER_REDUCTION_NONE,
    };
    return context->kernels->cross_entropy_reduce(context, &problem, stream);
}
