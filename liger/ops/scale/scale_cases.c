/* scale_cases.c - shapes and tolerances of scale. */
#include "tests/harness/op_door.h"

void scale_reference(int64_t count, const double *x, const double *scale, double *y);

enum { X, SCALE, Y, TENSORS };
enum { COUNT };
enum { CAST = 1, FROM_F32 = 2, TO_F32 = 4, ONE = 8 };

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
}

OP_DOOR(scale, NULL)

static void reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    scale_reference(c->size[COUNT], t[X], t[SCALE], t[Y]);
}

static const struct op_case cases[] = {
    {.label = "33", .size = {33}},
    {.label = "1", .size = {1}},
    {.label = "15 by 1", .size = {15}, .flags = ONE},
    {.label = "16 cast", .size = {16}, .flags = CAST},
    {.label = "1000 from f32", .size = {1000}, .flags = FROM_F32},
    {.label = "4099 to f32", .size = {4099}, .flags = TO_F32},
    {.label = "100003", .size = {100003}},
    {.label = "5000011 from f32", .size = {5000011}, .flags = FROM_F32, .large = true},
    {.label = "nothing", .size = {0}, .edge = true},
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
    .call = call_scale,
    .reference = reference,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    OP_BENCH(bench),
};
