/* swiglu.c - the door of SwiGLU: check once, lower to a problem, call through the table. */
#include "liger/ops/swiglu/swiglu.h"

#include "liger/core/args.h"
#include "liger/core/check.h"
#include "liger/ops/swiglu/swiglu_problem.h"

static bool in_one_piece(const liger_rows *view, int64_t rows, int64_t cols) {
    return view->data == NULL || rows == 1 || (view->inner == rows && view->inner_stride == cols);
}

/* Tensors without gaps become one long row: kernels then need no row arithmetic, and narrow rows no tails. */
static void join_rows(int64_t *rows, int64_t *cols, liger_rows *const *views, int count) {
    for (int i = 0; i < count; i++)
        if (!in_one_piece(views[i], *rows, *cols)) return;
    *cols *= *rows;
    *rows = 1;
    for (int i = 0; i < count; i++) *views[i] = (liger_rows){.data = views[i]->data, .inner = 1};
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static liger_status lower_forward(const liger_swiglu_forward_args *args, struct swiglu_forward_problem *problem) {
    const liger_tensor *gate = &args->gate, *up = &args->up, *y = &args->y;
    LIGER_TRY(liger_check_float(gate, "swiglu_forward: gate"));
    LIGER_REQUIRE(args->activation_dtype == LIGER_DTYPE_NONE || liger_is_float(args->activation_dtype),
                  LIGER_ERR_ARGUMENT,
                  "swiglu_forward: activation_dtype is %d, but must be 0 or one of f32 (%d), f16 (%d), bf16 (%d)",
                  args->activation_dtype, LIGER_F32, LIGER_F16, LIGER_BF16);
    *problem = (struct swiglu_forward_problem){
        .dtype = (liger_dtype)gate->dtype,
        .activation_dtype = (liger_dtype)(args->activation_dtype ? args->activation_dtype : gate->dtype),
        .rows = liger_tensor_rows(gate),
        .cols = liger_tensor_cols(gate),
        .gate_multiplier = args->gate_multiplier,
        .down_multiplier = args->down_multiplier,
    };
    LIGER_TRY(liger_fold_rows(gate, "swiglu_forward: gate", &problem->gate));
    LIGER_TRY(liger_lower_twin(up, "swiglu_forward: up", gate, "gate", &problem->up));
    LIGER_TRY(liger_lower_twin(y, "swiglu_forward: y", gate, "gate", &problem->y));
    LIGER_TRY(liger_check_overlap(y, "swiglu_forward: y", gate, "gate", true));
    return liger_check_overlap(y, "swiglu_forward: y", up, "up", true);
}

liger_status liger_swiglu_forward(liger_context *context, const liger_swiglu_forward_args *given, liger_stream stream) {
    liger_swiglu_forward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "swiglu_forward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "swiglu_forward"));
    struct swiglu_forward_problem problem;
    LIGER_TRY(lower_forward(&args, &problem));
    if (problem.rows == 0 || problem.cols == 0) return LIGER_OK;
    liger_rows *const views[] = {&problem.gate, &problem.up, &problem.y};
    join_rows(&problem.rows, &problem.cols, views, 3);
    return context->kernels->swiglu_forward(context, &problem, stream);
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

static liger_status check_backward_overlaps(const liger_swiglu_backward_args *args) {
    const liger_tensor *dy = &args->dy, *gate = &args->gate, *up = &args->up, *dgate = &args->dgate, *dup = &args->dup;
    LIGER_TRY(liger_check_overlap(dgate, "swiglu_backward: dgate", dy, "dy", true));
    LIGER_TRY(liger_check_overlap(dgate, "swiglu_backward: dgate", gate, "gate", true));
    LIGER_TRY(liger_check_overlap(dgate, "swiglu_backward: dgate", up, "up", false));
    LIGER_TRY(liger_check_overlap(dup, "swiglu_backward: dup", dy, "dy", true));
    LIGER_TRY(liger_check_overlap(dup, "swiglu_backward: dup", gate, "gate", false));
    LIGER_TRY(liger_check_overlap(dup, "swiglu_backward: dup", up, "up", true));
    return liger_check_overlap(dup, "swiglu_backward: dup", dgate, "dgate", false);
}

static liger_status lower_backward(const liger_swiglu_backward_args *args, struct swiglu_backward_problem *problem) {
    const liger_tensor *gate = &args->gate;
    LIGER_TRY(liger_check_float(gate, "swiglu_backward: gate"));
    *problem = (struct swiglu_backward_problem){
        .dtype = (liger_dtype)gate->dtype,
        .rows = liger_tensor_rows(gate),
        .cols = liger_tensor_cols(gate),
        .gate_multiplier = args->gate_multiplier,
        .down_multiplier = args->down_multiplier,
    };
    LIGER_TRY(liger_fold_rows(gate, "swiglu_backward: gate", &problem->gate));
    LIGER_TRY(liger_lower_twin(&args->up, "swiglu_backward: up", gate, "gate", &problem->up));
    LIGER_TRY(liger_lower_twin(&args->dy, "swiglu_backward: dy", gate, "gate", &problem->dy));
    if (args->dgate.data)
        LIGER_TRY(liger_lower_twin(&args->dgate, "swiglu_backward: dgate", gate, "gate", &problem->dgate));
    if (args->dup.data) LIGER_TRY(liger_lower_twin(&args->dup, "swiglu_backward: dup", gate, "gate", &problem->dup));
    return check_backward_overlaps(args);
}

liger_status liger_swiglu_backward(liger_context *context, const liger_swiglu_backward_args *given,
                                   liger_stream stream) {
    liger_swiglu_backward_args args;
    LIGER_REQUIRE(context != NULL, LIGER_ERR_ARGUMENT, "swiglu_backward: context is NULL");
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "swiglu_backward"));
    struct swiglu_backward_problem problem;
    LIGER_TRY(lower_backward(&args, &problem));
    if (problem.rows == 0 || problem.cols == 0) return LIGER_OK;
    if (problem.dgate.data == NULL && problem.dup.data == NULL) return LIGER_OK;
    liger_rows *const views[] = {&problem.dy, &problem.gate, &problem.up, &problem.dgate, &problem.dup};
    join_rows(&problem.rows, &problem.cols, views, 5);
    return context->kernels->swiglu_backward(context, &problem, stream);
}
