/* relu_squared_cases.c - shapes, tolerances and bench points of the squared ReLU. What the door refuses, and which outputs may
 * be inputs, the driver reads from its table. */
#include "liger/ops/relu_squared/relu_squared.h"
#include "liger/ops/relu_squared/relu_squared_ref.h"
#include "tests/harness/op_door.h"
#include "tests/harness/rows_cases.h"

enum { FX, FY, FORWARD_TENSORS };
enum { DY, BX, DX, BACKWARD_TENSORS };

static const struct op_case cases[] = {
    {.label = "3x7x37", .size = {3, 7, 37}},
    {.label = "one element", .size = {0, -1, 1}},
    {.label = "long row", .size = {0, -1, 40007}},
    {.label = "aligned 6x2x512", .size = {6, 2, 512}},
    {.label = "many narrow rows", .size = {0, 1031, 8}},
    {.label = "columns of one", .size = {4, 9, 1}},
    {.label = "no rows", .size = {0, 0, 40}, .edge = true},
    {.label = "no columns", .size = {2, 3, 0}, .edge = true},
    {.label = "260x4104", .size = {0, 260, 4104}, .large = true},
};

/* Bytes: every tensor once. */
static const struct op_case bench[] = {
    {.label = "16384x4096", .size = {0, 16384, 4096}, .dtypes = 1u << LIGER_BF16, .large = true},
    {.label = "2048x4096", .size = {0, 2048, 4096}},
};

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    spec[FX] = rows_tensor(c, "x", ROLE_IN);
    spec[FX].ranges = OP_EVERY_RANGE;
    spec[FX].huge = 0x1p40;
    spec[FY] = rows_tensor(c, "y", ROLE_OUT);
    spec[FY].relative = 1.05; /* the product is rounded once */
}

OP_DOOR(relu_squared_forward, NULL)

static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    relu_squared_forward_ref(elements_of(c), t[FX], t[FY]);
}

const struct op_cases relu_squared_forward_cases = {
    .name = "relu_squared_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .call = call_relu_squared_forward,
    .reference = reference_forward,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    spec[DY] = rows_tensor(c, "dy", ROLE_IN);
    spec[DY].ranges = 1u << RANGE_OFFSET;
    spec[BX] = rows_tensor(c, "x", ROLE_IN);
    spec[BX].ranges = OP_EVERY_RANGE;
    spec[BX].huge = 0x1p40;
    spec[DX] = rows_tensor(c, "dx", ROLE_OUT);
    spec[DX].relative = 1.05; /* 2 · x is exact, the product is rounded once */
}

OP_DOOR(relu_squared_backward, NULL)

static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    relu_squared_backward_ref(elements_of(c), t[DY], t[BX], t[DX]);
}

static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    double sum = 0;
    (void)types;
    for (int64_t i = 0; i < elements_of(c); i++) {
        double y;
        relu_squared_forward_ref(1, t[BX] + i, &y);
        sum += t[DY][i] * y;
    }
    return sum;
}

static const struct op_gradient gradients[] = {{DX, BX}};

const struct op_cases relu_squared_backward_cases = {
    .name = "relu_squared_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .call = call_relu_squared_backward,
    .reference = reference_backward,
    .no_naive = OP_NO_SUMS,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_BENCH(bench),
};
