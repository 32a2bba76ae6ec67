/* interleave_cases.c - shapes and bench points of another order of blocks. An internal slot: no door, no refusals. */
#include "liger/core/context_state.h"
#include "liger/ops/interleave/interleave_problem.h"
#include "tests/harness/op_cases.h"

void interleave_reference(int64_t rows, int64_t cols, int64_t block, double *data);

enum { DATA, TENSORS };
enum { ROWS, COLS, BLOCK };

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    spec[DATA] = (struct tensor_spec){.name = "data",
                                      .role = ROLE_INOUT,
                                      .kind = KIND_T,
                                      .values = VALUES_NORMAL,
                                      .ndim = 2,
                                      .shape = {c->size[ROWS] * c->size[COLS], c->size[BLOCK]},
                                      .ranges = OP_EVERY_RANGE};
}

static liger_status call(liger_context *context, const struct op_call *call, liger_stream stream) {
    const struct interleave_problem problem = {
        .dtype = (liger_dtype)call->t[DATA].dtype,
        .data = call->t[DATA].data,
        .rows = call->c.size[ROWS],
        .cols = call->c.size[COLS],
        .block = call->c.size[BLOCK],
    };
    return context->kernels->interleave(context, &problem, stream);
}

static void reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    interleave_reference(c->size[ROWS], c->size[COLS], c->size[BLOCK], t[DATA]);
}

/* Cycles: none, of two places, one that has nearly all; blocks of a word and of several pieces. */
static const struct op_case cases[] = {
    {.label = "5x3 of 7", .size = {5, 3, 7}},
    {.label = "1x9 of 4", .size = {1, 9, 4}},
    {.label = "9x1 of 4", .size = {9, 1, 4}},
    {.label = "4x4 of 16", .size = {4, 4, 16}},
    {.label = "32x8 of 24", .size = {32, 8, 24}},
    {.label = "37x11 of 1", .size = {37, 11, 1}},
    {.label = "6x10 of 1500", .size = {6, 10, 1500}},
    {.label = "1000x16 of 64", .size = {1000, 16, 64}, .large = true},
    {.label = "no rows", .size = {0, 4, 5}, .edge = true},
    {.label = "no blocks", .size = {3, 4, 0}, .edge = true},
};
static const struct op_case bench[] = {
    {.label = "1024x8 of 4000", .size = {1024, 8, 4000}},
};

const struct op_cases interleave_cases = {
    .name = "interleave",
    .tensor_count = TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .call = call,
    .reference = reference,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    OP_BENCH(bench),
};
