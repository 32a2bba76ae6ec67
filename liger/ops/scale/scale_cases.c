/* scale_cases.c - shapes and tolerances of scale. */
#include <math.h>

#include "liger/ops/scale/scale.h"
#include "liger/ops/scale/scale_ref.h"
#include "tests/harness/op_door.h"

enum { X, SCALE, Y, TARGET, TENSORS };
enum { COUNT, ROWS };
enum { CAST = 1, FROM_F32 = 2, TO_F32 = 4, ONE = 8, INFINITE = 16, NAN_SCALE = 32 };

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    spec[X] = (struct tensor_spec){.name = "x",
                                   .role = ROLE_IN,
                                   .kind = c->flags & FROM_F32 ? KIND_F32 : KIND_T,
                                   .values = VALUES_NORMAL,
                                   .ndim = 1,
                                   .shape = {c->size[COUNT]},
                                   .specials = true,
                                   .ranges = OP_EVERY_RANGE};
    spec[SCALE] = (struct tensor_spec){.name = "scale",
                                       .role = ROLE_IN,
                                       .kind = KIND_F32,
                                       .values = VALUES_NORMAL,
                                       .spread = c->flags & ONE ? 1e-30 : 1,
                                       .offset = c->flags & ONE ? 1 : 0,
                                       .absent = c->flags & CAST,
                                       .ndim = 0};
    /* f16 below 2^-14 has fixed steps of 2^-24. */
    spec[Y] = (struct tensor_spec){.name = "y",
                                   .role = ROLE_OUT,
                                   .kind = c->flags & TO_F32 ? KIND_F32 : KIND_T,
                                   .ndim = 1,
                                   .shape = {c->size[COUNT]},
                                   .relative = 1.01,
                                   .absolute = 1,
                                   .magnitude = 1};
    spec[TARGET] = (struct tensor_spec){.name = "target",
                                        .kind = KIND_INDEX,
                                        .values = VALUES_TARGET,
                                        .spread = 10,
                                        .offset = -100,
                                        .ignore_every = 3,
                                        .absent = c->size[ROWS] == 0,
                                        .ndim = 1,
                                        .shape = {c->size[ROWS]}};
}

/* The gradient of a loss: rows that are ignored are zeros. */
static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    if (c->flags & INFINITE) *t[SCALE] = INFINITY;
    if (c->flags & NAN_SCALE) *t[SCALE] = NAN;
    for (int64_t i = 0; t[TARGET] && i < c->size[COUNT]; i++)
        if (t[TARGET][i / (c->size[COUNT] / c->size[ROWS])] < 0) t[X][i] = 0;
}

static void options(const struct op_case *c, void *args) {
    (void)c;
    ((liger_scale_args *)args)->ignore_index = -100;
}
OP_DOOR(scale, options)

static void reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    scale_reference(&(struct scale_ref){.count = c->size[COUNT],
                                        .rows = c->size[ROWS],
                                        .ignore_index = -100,
                                        .x = t[X],
                                        .scale = t[SCALE],
                                        .target = t[TARGET],
                                        .y = t[Y]});
}

static const struct op_case cases[] = {
    {.label = "3x11", .size = {33, 3}},
    {.label = "1", .size = {1}},
    {.label = "15 by 1", .size = {15}, .flags = ONE},
    {.label = "16 cast", .size = {16}, .flags = CAST},
    {.label = "1000 from f32", .size = {1000}, .flags = FROM_F32},
    {.label = "4099 to f32", .size = {4099}, .flags = TO_F32},
    {.label = "100003", .size = {100003}},
    {.label = "5000011 from f32", .size = {5000011}, .flags = FROM_F32, .large = true},
    {.label = "nothing", .size = {0}, .edge = true},
    {.label = "8x5 times infinity", .size = {40, 8}, .flags = INFINITE, .edge = true},
    {.label = "9x64 times NaN", .size = {576, 9}, .flags = NAN_SCALE, .edge = true},
    {.label = "7x3 times infinity from f32", .size = {21, 7}, .flags = INFINITE | FROM_F32, .edge = true},
    {.label = "7x3 times infinity to f32", .size = {21, 7}, .flags = INFINITE | TO_F32, .edge = true},
};

static const struct op_provocation provocations[] = {
    {"rows that do not divide", OP_SHAPE(TARGET, 0, 2), LIGER_ERR_SHAPE, {"target has 2 elements", "x has 33"}},
};

static const struct op_case bench[] = {
    {.label = "32768000", .size = {32768000}},
    {.label = "128256x4096 from f32",
     .size = {128256 * 4096},
     .flags = FROM_F32,
     .dtypes = 1u << LIGER_BF16,
     .large = true},
};

const struct op_cases scale_cases = {
    .name = "scale",
    .tensor_count = TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_scale,
    .reference = reference,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    OP_PROVOCATIONS(provocations),
    OP_BENCH(bench),
};
