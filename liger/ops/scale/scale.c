/* scale.c - the door of scale: check once, lower to a problem, call through the table. */
#include "liger/ops/scale/scale.h"

#include "liger/core/args.h"
#include "liger/core/check.h"
#include "liger/ops/scale/scale_problem.h"

static liger_status check_scale(const liger_tensor *scale) {
    if (scale->data == NULL) return LIGER_OK;
    LIGER_TRY(liger_check_dtype(scale, "scale: scale", LIGER_F32));
    LIGER_REQUIRE(liger_tensor_elements(scale) == 1, LIGER_ERR_SHAPE, "scale: scale has %lld elements, but must have 1",
                  (long long)liger_tensor_elements(scale));
    return LIGER_OK;
}

liger_status liger_scale(liger_context *context, const liger_scale_args *given, liger_stream stream) {
    liger_scale_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "scale: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "scale"));
    LIGER_TRY(liger_check_float(&args.x, "scale: x"));
    LIGER_TRY(liger_check_contiguous(&args.x, "scale: x"));
    LIGER_TRY(check_scale(&args.scale));
    LIGER_TRY(liger_check_float(&args.y, "scale: y"));
    LIGER_TRY(liger_check_same_shape(&args.y, "scale: y", &args.x, "x"));
    LIGER_TRY(liger_check_contiguous(&args.y, "scale: y"));
    LIGER_TRY(liger_check_overlap(&args.y, "scale: y", &args.x, "x", true));
    LIGER_TRY(liger_check_overlap(&args.y, "scale: y", &args.scale, "scale", false));
    const struct scale_problem problem = {
        .x_dtype = (liger_dtype)args.x.dtype,
        .y_dtype = (liger_dtype)args.y.dtype,
        .count = liger_tensor_elements(&args.x),
        .x = args.x.data,
        .y = args.y.data,
        .scale = args.scale.data,
    };
    if (problem.count == 0) return LIGER_OK;
    return context->kernels->scale(context, &problem, stream);
}
