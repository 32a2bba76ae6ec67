/* cross_entropy_loss_problem.c - see cross_entropy_loss_problem.h. */
#include "liger/ops/cross_entropy/cross_entropy_loss_problem.h"

#include <math.h>

#include "liger/core/check.h"
#include "liger/ops/cross_entropy/cross_entropy.h"

/* ---- checks ------------------------------------------------------------------------------------------------------- */

liger_status cross_entropy_check_options(const char *op, float label_smoothing, float lse_square_scale, float softcap,
                                         int32_t reduction) {
    LIGER_REQUIRE(label_smoothing >= 0 && label_smoothing <= 1, LIGER_ERR_ARGUMENT,
                  "%s: label_smoothing is %g, but must be in [0, 1]", op, (double)label_smoothing);
    LIGER_REQUIRE(isfinite(lse_square_scale), LIGER_ERR_ARGUMENT, "%s: lse_square_scale is %g, but must be finite", op,
                  (double)lse_square_scale);
    LIGER_REQUIRE(softcap >= 0 && isfinite(softcap), LIGER_ERR_ARGUMENT,
                  "%s: softcap is %g, but must be greater than 0 (or 0 for none)", op, (double)softcap);
    LIGER_REQUIRE(reduction >= LIGER_REDUCTION_NONE && reduction <= LIGER_REDUCTION_SUM, LIGER_ERR_ARGUMENT,
                  "%s: reduction is %d, but must be in [%d, %d]", op, reduction, LIGER_REDUCTION_NONE,
                  LIGER_REDUCTION_SUM);
    return LIGER_OK;
}

liger_status cross_entropy_check_targets(const struct cross_entropy_loss_problem *loss) {
    const liger_tensor *upstream = loss->upstream;
    struct liger_name name;
    LIGER_TRY(liger_check_index(loss->target, liger_name_of(&name, loss->op, "target")));
    LIGER_TRY(liger_check_vector(loss->target, name.text, loss->rows));
    liger_name_of(&name, loss->op, loss->weight_name);
    LIGER_TRY(liger_check_optional_vector(loss->weight, name.text, LIGER_F32, loss->vocab));
    if (upstream->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype(upstream, liger_name_of(&name, loss->op, "upstream"), LIGER_F32));
    if (liger_tensor_elements(upstream) == 1 && upstream->ndim <= 1) return LIGER_OK;
    return liger_check_vector(upstream, name.text, loss->rows);
}

/* A result with one value, or one per row with reduction NONE. */
static liger_status check_result(const struct cross_entropy_loss_problem *loss, const liger_tensor *result,
                                 const char *argument, liger_dtype dtype) {
    struct liger_name name;
    if (result->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype_or_f32(result, liger_name_of(&name, loss->op, argument), (int)dtype));
    if (loss->reduction == LIGER_REDUCTION_NONE) return liger_check_vector(result, name.text, loss->rows);
    LIGER_REQUIRE(liger_tensor_elements(result) == 1, LIGER_ERR_SHAPE,
                  "%s has %lld elements, but must have 1 unless reduction is NONE", name.text,
                  (long long)liger_tensor_elements(result));
    return LIGER_OK;
}

liger_status cross_entropy_check_results(const struct cross_entropy_loss_problem *loss) {
    struct liger_name name;
    LIGER_TRY(check_result(loss, loss->loss, "loss", loss->dtype));
    LIGER_TRY(check_result(loss, loss->z_loss, "z_loss", loss->dtype));
    LIGER_TRY(check_result(loss, loss->accuracy, "accuracy", LIGER_F32));
    liger_name_of(&name, loss->op, "predicted");
    return liger_check_optional_vector(loss->predicted, name.text, LIGER_I64, loss->rows);
}

/* ---- workspace ---------------------------------------------------------------------------------------------------- */

struct layout {
    size_t loss, z_loss, accuracy, bytes;
};

static size_t reserve(struct layout *layout, const liger_tensor *result, int64_t rows) {
    const size_t offset = layout->bytes;
    if (result->data) layout->bytes += ((size_t)rows * sizeof(float) + 255) / 256 * 256;
    return offset;
}

static struct layout layout_of(const struct cross_entropy_loss_problem *loss) {
    struct layout layout = {.bytes = 256}; /* the counts */
    layout.loss = reserve(&layout, loss->loss, loss->rows);
    layout.z_loss = reserve(&layout, loss->z_loss, loss->rows);
    layout.accuracy = reserve(&layout, loss->accuracy, loss->rows);
    return layout;
}

size_t cross_entropy_loss_workspace(const struct cross_entropy_loss_problem *loss) { return layout_of(loss).bytes; }

static float *row_array(const struct cross_entropy_loss_problem *loss, const liger_tensor *result, size_t offset) {
    return result->data ? (float *)((char *)loss->workspace + offset) : NULL;
}

/* ---- the three steps ---------------------------------------------------------------------------------------------- */

liger_status cross_entropy_run_count(liger_context *context, const struct cross_entropy_loss_problem *loss,
                                     liger_stream stream) {
    const struct cross_entropy_count_problem problem = {
        .target = loss->target->data,
        .target_dtype = (liger_dtype)loss->target->dtype,
        .rows = loss->rows,
        .vocab = loss->vocab,
        .ignore_index = loss->ignore_index,
        .weight = loss->weight->data,
        .counts = loss->counts,
        .op = loss->op,
    };
    return context->kernels->cross_entropy_count(context, &problem, stream);
}

struct cross_entropy_rows_problem cross_entropy_rows_of(const struct cross_entropy_loss_problem *loss) {
    const struct layout layout = layout_of(loss);
    return (struct cross_entropy_rows_problem){
        .dtype = loss->dtype,
        .target_dtype = (liger_dtype)loss->target->dtype,
        .rows = loss->rows,
        .vocab = loss->vocab,
        .target = loss->target->data,
        .weight = loss->weight->data,
        .counts = loss->counts,
        .ignore_index = loss->ignore_index,
        .label_smoothing = loss->label_smoothing,
        .lse_square_scale = loss->lse_square_scale,
        .softcap = loss->softcap,
        .mean = loss->reduction == LIGER_REDUCTION_MEAN,
        .upstream = loss->upstream->data,
        .upstream_stride = loss->upstream->data && liger_tensor_elements(loss->upstream) > 1,
        .loss = row_array(loss, loss->loss, layout.loss),
        .z_loss = row_array(loss, loss->z_loss, layout.z_loss),
        .accuracy = row_array(loss, loss->accuracy, layout.accuracy),
        .predicted = loss->predicted->data,
    };
}

liger_status cross_entropy_run_reduce(liger_context *context, const struct cross_entropy_loss_problem *loss,
                                      liger_stream stream) {
    const struct layout layout = layout_of(loss);
    if (!loss->loss->data && !loss->z_loss->data && !loss->accuracy->data) return LIGER_OK;
    const struct cross_entropy_reduce_problem problem = {
        .rows = loss->rows,
        .counts = loss->counts,
        .loss = row_array(loss, loss->loss, layout.loss),
        .z_loss = row_array(loss, loss->z_loss, layout.z_loss),
        .accuracy = row_array(loss, loss->accuracy, layout.accuracy),
        .loss_out = loss->loss->data,
        .z_loss_out = loss->z_loss->data,
        .accuracy_out = loss->accuracy->data,
        .loss_dtype = (liger_dtype)loss->loss->dtype,
        .z_loss_dtype = (liger_dtype)loss->z_loss->dtype,
        .unreduced = loss->reduction == LIGER_REDUCTION_NONE,
    };
    return context->kernels->cross_entropy_reduce(context, &problem, stream);
}
