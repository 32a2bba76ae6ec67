/* column_sum_cases.c - shapes, tolerances and bench points of the column sum. An internal slot: no door, no refusals. */
#include <math.h>

#include "liger/core/check.h"
#include "liger/ops/column_sum/column_sum_problem.h"
#include "tests/harness/op_cases.h"

void column_sum_reference(int64_t rows, int64_t cols, const double *x, double *sum, bool accumulate);
void column_sum_naive(int64_t rows, int64_t cols, const double *x, double *sum, bool accumulate);

enum { X, TOTAL, TENSORS };
enum { ROWS, COLS };
enum { ACCUMULATE = 1 };

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    const bool accumulate = c->flags & ACCUMULATE;
    spec[X] = (struct tensor_spec){.name = "x",
                                   .role = ROLE_IN,
                                   .kind = KIND_T,
                                   .values = VALUES_NORMAL,
                                   .ndim = 2,
                                   .shape = {c->size[ROWS], c->size[COLS]},
                                   .gaps = true,
                                   .ranges = OP_EVERY_RANGE,
                                   .huge = 0x1p100}; /* no partial sum may overflow */
    /* At most rows/64 additions in a block and 64 blocks, each of partial sums of about sqrt(rows). */
    spec[TOTAL] = (struct tensor_spec){.name = "sum",
                                       .role = accumulate ? ROLE_INOUT : ROLE_OUT,
                                       .kind = KIND_F32,
                                       .values = VALUES_NORMAL,
                                       .ndim = 1,
                                       .shape = {c->size[COLS]},
                                       .ranges = 1u << RANGE_TINY | 1u << RANGE_SUBNORMAL,
                                       .relative = 1,
                                       .absolute = 8 + sqrt((double)c->size[ROWS]),
                                       .magnitude = 1 + sqrt((double)c->size[ROWS])};
}

static liger_status call(liger_context *context, const struct op_call *call, liger_stream stream) {
    const struct column_sum_problem problem = {
        .dtype = (liger_dtype)call->t[X].dtype,
        .x = call->t[X].data,
        .rows = call->t[X].shape[0],
        .cols = call->t[X].shape[1],
        .stride = call->t[X].stride[0],
        .sum = call->t[TOTAL].data,
        .accumulate = call->c.flags & ACCUMULATE,
        .workspace = call->workspace,
        .workspace_bytes = call->workspace_bytes,
    };
    /* What every caller of the slot does at its own door. */
    const size_t needed = column_sum_workspace(problem.rows, problem.cols);
    LIGER_TRY(liger_check_workspace(call->workspace, call->workspace_bytes, needed, "column_sum"));
    return context->kernels->column_sum(context, &problem, stream);
}

static liger_status workspace(liger_context *context, const struct op_call *call, size_t *bytes) {
    (void)context;
    *bytes = column_sum_workspace(call->t[X].shape[0], call->t[X].shape[1]);
    return LIGER_OK;
}

static void reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    column_sum_reference(c->size[ROWS], c->size[COLS], t[X], t[TOTAL], c->flags & ACCUMULATE);
}

static void naive(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    column_sum_naive(c->size[ROWS], c->size[COLS], t[X], t[TOTAL], c->flags & ACCUMULATE);
}

static const struct op_case cases[] = {
    {.label = "5x33", .size = {5, 33}},
    {.label = "1x1", .size = {1, 1}},
    {.label = "64x15", .size = {64, 15}, .flags = ACCUMULATE},
    {.label = "65x16", .size = {65, 16}},
    {.label = "129x257", .size = {129, 257}, .flags = ACCUMULATE},
    {.label = "1000x72", .size = {1000, 72}},
    {.label = "4099x12", .size = {4099, 12}},
    {.label = "1000x1024", .size = {1000, 1024}, .large = true},
    {.label = "4099x300", .size = {4099, 300}, .large = true},
    {.label = "9000x72", .size = {9000, 72}, .large = true},
    {.label = "no rows", .size = {0, 40}, .edge = true},
    {.label = "no rows, accumulate", .size = {0, 40}, .flags = ACCUMULATE, .edge = true},
};
static const struct op_case bench[] = {
    {.label = "1024x32000", .size = {1024, 32000}},
    {.label = "4096x128256", .size = {4096, 128256}, .dtypes = 1u << LIGER_BF16, .large = true},
};

const struct op_cases column_sum_cases = {
    .name = "column_sum",
    .tensor_count = TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .call = call,
    .workspace = workspace,
    .reference = reference,
    .naive = naive,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    OP_BENCH(bench),
};
