/* scale_cases.c - shapes, tolerances and refusals of scale. */
#include "liger/ops/scale/scale.h"
#include "tests/harness/op_cases.h"

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
                                   .specials = true};
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

static liger_status call(liger_context *context, const struct op_call *call, liger_stream stream) {
    liger_scale_args args = LIGER_SCALE_ARGS_INIT;
    args.x = call->t[X], args.scale = call->t[SCALE], args.y = call->t[Y];
    return liger_scale(context, &args, stream);
}

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
static const struct op_alias aliases[] = {{Y, X}};

static void x_i32(struct op_call *call) { call->t[X].dtype = LIGER_I32; }
static void x_stride(struct op_call *call) { call->t[X].stride[0] = 2; }
static void scale_f16(struct op_call *call) { call->t[SCALE].dtype = LIGER_F16; }
static void scale_two(struct op_call *call) {
    call->t[SCALE].ndim = 1, call->t[SCALE].shape[0] = 2, call->t[SCALE].stride[0] = 1;
}
static void y_i64(struct op_call *call) { call->t[Y].dtype = LIGER_I64; }
static void y_short(struct op_call *call) { call->t[Y].shape[0] = 32; }
static void y_stride(struct op_call *call) { call->t[Y].stride[0] = 3; }
static void y_overlap(struct op_call *call) {
    call->t[Y].data = (char *)call->t[X].data + liger_dtype_size(call->t[X].dtype);
}

static const struct op_provocation provocations[] = {
    {"x dtype", 0, x_i32, LIGER_ERR_DTYPE, {"x", "i32", "bf16"}},
    {"x stride", 0, x_stride, LIGER_ERR_LAYOUT, {"x", "2", "1"}},
    {"scale dtype", 0, scale_f16, LIGER_ERR_DTYPE, {"scale", "f16", "f32"}},
    {"scale size", 0, scale_two, LIGER_ERR_SHAPE, {"scale", "2", "1"}},
    {"y dtype", 0, y_i64, LIGER_ERR_DTYPE, {"y", "i64"}},
    {"y shape", 0, y_short, LIGER_ERR_SHAPE, {"y", "32", "33"}},
    {"y stride", 0, y_stride, LIGER_ERR_LAYOUT, {"y", "3", "1"}},
    {"y overlap", 0, y_overlap, LIGER_ERR_LAYOUT, {"y", "x"}},
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
    .cases = cases,
    .case_count = OP_COUNT(cases),
    .call = call,
    .reference = reference,
    .aliases = aliases,
    .alias_count = OP_COUNT(aliases),
    .provocations = provocations,
    .provocation_count = OP_COUNT(provocations),
    .bench = bench,
    .bench_count = OP_COUNT(bench),
};
