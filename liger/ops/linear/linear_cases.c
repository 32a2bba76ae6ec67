/* linear_cases.c - shapes, tolerances and bench points of linear. Its products and sums are tested more widely behind their
 * slots. */
#include "liger/ops/linear/linear.h"
#include "liger/ops/linear/linear_ref.h"
#include "tests/harness/op_door.h"

enum { ROWS, HIDDEN, VOCAB };
enum { X, WEIGHT, BIAS, Y, FORWARD_TENSORS };
enum { DY, BX, BWEIGHT, DX, DWEIGHT, DBIAS, BACKWARD_TENSORS };
enum { NO_BIAS = 1, ACCUMULATE = 2, NO_DX = 4, NO_DWEIGHT = 8, NO_DBIAS = 16 };

/* Budget: one rounding at the store, and additions in f32 whose order is the backend's own. */
static struct tensor_spec matrix(const char *name, enum tensor_role role, int64_t rows, int64_t cols, int64_t terms) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_T,
                                .ndim = 2,
                                .shape = {rows, cols},
                                .gaps = true,
                                .ranges = 1u << RANGE_HUGE | 1u << RANGE_TINY | 1u << RANGE_OFFSET,
                                .huge = 0x1p50, /* no partial sum of products may overflow, no product vanish */
                                .tiny = 0x1p-50,
                                .relative = 1,
                                .absolute = 4 + (double)terms / 4};
}

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t rows = c->size[ROWS], hidden = c->size[HIDDEN], vocab = c->size[VOCAB];
    spec[X] = matrix("x", ROLE_IN, rows, hidden, 0);
    spec[WEIGHT] = matrix("weight", ROLE_IN, vocab, hidden, 0);
    spec[WEIGHT].gaps = false;
    spec[BIAS] =
        (struct tensor_spec){.name = "bias", .kind = KIND_T, .ndim = 1, .shape = {vocab}, .absent = c->flags & NO_BIAS};
    spec[BIAS].ranges = 1u << RANGE_TINY, spec[BIAS].tiny = 0x1p-100;
    spec[Y] = matrix("y", ROLE_OUT, rows, vocab, hidden);
    spec[Y].kind = KIND_WEIGHT; /* T or f32 */
}

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t rows = c->size[ROWS], hidden = c->size[HIDDEN], vocab = c->size[VOCAB];
    const enum tensor_role sum = c->flags & ACCUMULATE ? ROLE_INOUT : ROLE_OUT;
    spec[DY] = matrix("dy", ROLE_IN, rows, vocab, 0);
    spec[BX] = matrix("x", ROLE_IN, rows, hidden, 0);
    spec[BWEIGHT] = matrix("weight", ROLE_IN, vocab, hidden, 0);
    spec[BWEIGHT].gaps = false;
    spec[DX] = matrix("dx", ROLE_OUT, rows, hidden, vocab);
    spec[DX].absent = c->flags & NO_DX;
    spec[DWEIGHT] = matrix("dweight", sum, vocab, hidden, rows);
    spec[DWEIGHT].kind = KIND_WEIGHT;
    spec[DWEIGHT].gaps = false;
    spec[DWEIGHT].absent = c->flags & NO_DWEIGHT;
    spec[DBIAS] = (struct tensor_spec){.name = "dbias",
                                       .role = sum,
                                       .kind = KIND_F32,
                                       .ndim = 1,
                                       .shape = {vocab},
                                       .absent = c->flags & NO_DBIAS,
                                       .relative = 1,
                                       .absolute = 4 + (double)rows / 4};
    /* what is added to is of the size of the sums */
    spec[DWEIGHT].ranges = spec[DBIAS].ranges = 1u << RANGE_TINY;
    spec[DWEIGHT].tiny = 0x1p-100, spec[DBIAS].tiny = 0x1p-50;
}

static void backward_options(const struct op_case *c, void *args) {
    ((liger_linear_backward_args *)args)->accumulate = (c->flags & ACCUMULATE) != 0;
}
OP_DOOR(linear_forward, NULL)
OP_DOOR_WORKSPACE(linear_forward)
OP_DOOR(linear_backward, backward_options)
OP_DOOR_WORKSPACE(linear_backward)

#define SIZES(c) .rows = (c)->size[ROWS], .hidden = (c)->size[HIDDEN], .vocab = (c)->size[VOCAB]
#define FORWARD                                                                                                        \
    (struct linear_ref) { SIZES(c), .x = t[X], .weight = t[WEIGHT], .bias = t[BIAS], .y = t[Y] }
#define BACKWARD                                                                                                       \
    (struct linear_ref) {                                                                                              \
        SIZES(c), .accumulate = c->flags & ACCUMULATE, .dy = t[DY], .x = t[BX], .weight = t[BWEIGHT], .dx = t[DX],     \
                  .dweight = t[DWEIGHT], .dbias = t[DBIAS]                                                             \
    }
OP_EVALUATED_WHOLE(forward, struct linear_ref, FORWARD, linear_forward_ref, linear_forward_naive)
OP_EVALUATED_WHOLE(backward, struct linear_ref, BACKWARD, linear_backward_ref, linear_backward_naive)
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    double y[1024], total = 0; /* of ordinary cases */
    struct linear_ref p = BACKWARD;
    (void)types;
    p.y = y;
    linear_forward_ref(&p);
    for (int64_t i = 0; i < p.rows * p.vocab; i++) total += t[DY][i] * y[i];
    return total;
}

static double flops_forward(const struct op_case *c) {
    return 2.0 * (double)c->size[ROWS] * (double)c->size[HIDDEN] * (double)c->size[VOCAB];
}
static double flops_backward(const struct op_case *c) { return 2 * flops_forward(c); }

static const struct op_case forward_cases[] = {
    {.label = "5x9x7", .size = {5, 9, 7}},
    {.label = "5x9x7 no bias", .size = {5, 9, 7}, .flags = NO_BIAS},
    {.label = "1x1x1", .size = {1, 1, 1}},
    {.label = "33x40x17", .size = {33, 40, 17}},
    {.label = "64x129x300", .size = {64, 129, 300}, .large = true},
    {.label = "no rows", .size = {0, 9, 7}, .edge = true},
    {.label = "no columns", .size = {5, 9, 0}, .flags = NO_BIAS, .edge = true},
    {.label = "no sums", .size = {5, 0, 7}, .edge = true},
};
static const struct op_case backward_cases[] = {
    {.label = "5x9x7", .size = {5, 9, 7}},
    {.label = "1x1x1", .size = {1, 1, 1}},
    {.label = "33x40x17", .size = {33, 40, 17}},
    {.label = "33x40x17 dx", .size = {33, 40, 17}, .flags = NO_DWEIGHT | NO_DBIAS},
    {.label = "33x40x17 dbias", .size = {33, 40, 17}, .flags = NO_DX | NO_DWEIGHT},
    {.label = "130x129x300 more", .size = {130, 129, 300}, .flags = ACCUMULATE, .large = true},
    /* a sum with what was there is no gradient: not for mode grad */
    {.label = "5x9x7 more", .size = {5, 9, 7}, .flags = ACCUMULATE, .edge = true},
    {.label = "33x40x17 more dweight", .size = {33, 40, 17}, .flags = NO_DX | NO_DBIAS | ACCUMULATE, .edge = true},
    {.label = "no rows", .size = {0, 9, 7}, .edge = true},
    {.label = "no rows more", .size = {0, 9, 7}, .flags = ACCUMULATE, .edge = true},
    {.label = "no columns", .size = {5, 9, 0}, .edge = true},
};
static const struct op_gradient gradients[] = {{DX, BX}, {DWEIGHT, BWEIGHT}};

static const struct op_case bench[] = {{.label = "512x1024x4096", .size = {512, 1024, 4096}}};

#define NO_RANGE                                                                                                       \
    .no_range = {[RANGE_SUBNORMAL] = "linear: bf16 instructions of processors read subnormal operands as 0"}

const struct op_cases linear_forward_cases = {
    .name = "linear_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(forward_cases),
    .call = call_linear_forward,
    .workspace = workspace_linear_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    NO_RANGE,
    OP_BENCH(bench),
    .flops = flops_forward,
};

const struct op_cases linear_backward_cases = {
    .name = "linear_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(backward_cases),
    .call = call_linear_backward,
    .workspace = workspace_linear_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .loss = loss_backward,
    OP_GRADIENTS(gradients),
    .no_aliases = OP_NO_ALIASES,
    NO_RANGE,
    OP_BENCH(bench),
    .flops = flops_backward,
};
