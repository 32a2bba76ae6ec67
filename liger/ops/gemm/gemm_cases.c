/* gemm_cases.c - what the drivers need to know about the matrix product behind its slot.
 *
 * Budget: one rounding at the store, and k additions in f32 whose order is the backend's own. */
#include "liger/core/context_state.h"
#include "liger/ops/gemm/gemm_problem.h"
#include "tests/harness/op_cases.h"

void gemm_ref(int64_t m, int64_t n, int64_t k, bool ta, bool tb, const double *a, const double *b, const double *bias,
              double *c, bool accumulate);
void gemm_naive(int64_t m, int64_t n, int64_t k, bool ta, bool tb, const double *a, const double *b, const double *bias,
                double *c, bool accumulate);

enum { M, N, K };
enum { TRANSPOSE_A = 1, TRANSPOSE_B = 2, ACCUMULATE = 4, BIAS = 8 };
enum { A, B, BIAS_ROW, C, TENSORS };

/* clang-format off */
static const struct op_case cases[] = {
    {"5x7x9",                     {5, 7, 9}},
    {"5x7x9 b transposed, bias",  {5, 7, 9},         .flags = TRANSPOSE_B | BIAS},
    {"5x7x9 a transposed",        {5, 7, 9},         .flags = TRANSPOSE_A},
    {"5x7x9 both transposed",     {5, 7, 9},         .flags = TRANSPOSE_A | TRANSPOSE_B},
    {"33x17x40 accumulate",       {33, 17, 40},      .flags = ACCUMULATE},
    {"33x17x40 ab transposed acc", {33, 17, 40},     .flags = ACCUMULATE | TRANSPOSE_A | TRANSPOSE_B},
    {"1x1x1",                     {1, 1, 1},         .flags = BIAS},
    {"1x64x31",                   {1, 64, 31},       .flags = TRANSPOSE_B},
    {"64x1x33",                   {64, 1, 33},       .flags = TRANSPOSE_A},
    {"16x32x64",                  {16, 32, 64},      .flags = TRANSPOSE_B},
    {"65x67x2",                   {65, 67, 2},       .flags = TRANSPOSE_B},
    {"66x97x130",                 {66, 97, 130},     .flags = TRANSPOSE_A | ACCUMULATE},
    {"257x130x1031",              {257, 130, 1031},  .flags = TRANSPOSE_B, .large = true},
    {"130x515x260 acc",           {130, 515, 260},   .flags = TRANSPOSE_A | ACCUMULATE, .large = true},
    {"96x300x700",                {96, 300, 700},    .large = true},
    {"17x70x8213 nt acc",         {17, 70, 8213},    .flags = TRANSPOSE_B | ACCUMULATE, .large = true},
    {"17x70x8213 nt bias",        {17, 70, 8213},    .flags = TRANSPOSE_B | BIAS, .large = true},
    {"22x1024x33 nt bias",        {22, 1024, 33},    .flags = TRANSPOSE_B | BIAS, .large = true},
    {"130x720x2050 bias",         {130, 720, 2050},  .flags = BIAS, .large = true},
    {"16x300x4500 acc",           {16, 300, 4500},   .flags = ACCUMULATE, .large = true},
    {"m = 0",                     {0, 7, 9},         .edge = true},
    {"n = 0",                     {5, 0, 9},         .edge = true},
    {"k = 0",                     {5, 7, 0},         .flags = BIAS | TRANSPOSE_B, .edge = true},
    {"k = 0 accumulate",          {5, 7, 0},         .flags = ACCUMULATE, .edge = true},
};
static const struct op_case bench[] = {
    {"512x4096x1024 nt",          {512, 4096, 1024}, .flags = TRANSPOSE_B},
    {"512x1024x4096 nn",          {512, 1024, 4096}},
    {"4096x1024x512 tn acc",      {4096, 1024, 512}, .flags = TRANSPOSE_A | ACCUMULATE},
};
/* clang-format on */

static struct tensor_spec matrix(const char *name, int64_t rows, int64_t cols, bool transposed) {
    return (struct tensor_spec){.name = name,
                                .kind = KIND_T,
                                .ndim = 2,
                                .gaps = true,
                                .shape = {transposed ? cols : rows, transposed ? rows : cols},
                                .ranges = 1u << RANGE_HUGE | 1u << RANGE_TINY | 1u << RANGE_OFFSET,
                                .huge = 0x1p50, /* no partial sum of products may overflow, no product vanish */
                                .tiny = 0x1p-50};
}

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t m = c->size[M], n = c->size[N], k = c->size[K];
    spec[A] = matrix("a", m, k, c->flags & TRANSPOSE_A);
    spec[B] = matrix("b", k, n, c->flags & TRANSPOSE_B);
    spec[BIAS_ROW] =
        (struct tensor_spec){.name = "bias", .kind = KIND_T, .ndim = 1, .shape = {n}, .absent = !(c->flags & BIAS)};
    spec[BIAS_ROW].ranges = 1u << RANGE_TINY;
    spec[BIAS_ROW].tiny = 0x1p-100;
    spec[C] = matrix("c", m, n, false);
    spec[C].kind = KIND_WEIGHT; /* the dtype of a and b, or f32 */
    spec[C].role = c->flags & ACCUMULATE ? ROLE_INOUT : ROLE_OUT;
    spec[C].ranges = 1u << RANGE_TINY;
    spec[C].tiny = 0x1p-100;
    spec[C].relative = 1;
    spec[C].absolute = 4 + (double)k / 4;
}

/* With a bias the CUDA backend works in its workspace: so little of it that wide results take several rounds. */
static liger_status workspace(liger_context *context, const struct op_call *op, size_t *bytes) {
    const bool used = context->device != LIGER_DEVICE_CPU && op->c.flags & BIAS;
    *bytes = used ? (size_t)op->c.size[M] * 256 * sizeof(float) : 0;
    return LIGER_OK;
}

static liger_status call(liger_context *context, const struct op_call *op, liger_stream stream) {
    const liger_tensor *t = op->t;
    const struct gemm_problem problem = {
        .dtype = (liger_dtype)t[A].dtype,
        .c_dtype = (liger_dtype)t[C].dtype,
        .transpose_a = op->c.flags & TRANSPOSE_A,
        .transpose_b = op->c.flags & TRANSPOSE_B,
        .accumulate = op->c.flags & ACCUMULATE,
        .m = op->c.size[M],
        .n = op->c.size[N],
        .k = op->c.size[K],
        .lda = t[A].stride[0],
        .ldb = t[B].stride[0],
        .ldc = t[C].stride[0],
        .a = t[A].data,
        .b = t[B].data,
        .bias = t[BIAS_ROW].data,
        .c = t[C].data,
        .workspace = op->workspace,
        .workspace_bytes = op->workspace_bytes,
    };
    return context->kernels->gemm(context, &problem, stream);
}

static void reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    gemm_ref(c->size[M], c->size[N], c->size[K], c->flags & TRANSPOSE_A, c->flags & TRANSPOSE_B, t[A], t[B],
             t[BIAS_ROW], t[C], c->flags & ACCUMULATE);
}

static void naive(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    gemm_naive(c->size[M], c->size[N], c->size[K], c->flags & TRANSPOSE_A, c->flags & TRANSPOSE_B, t[A], t[B],
               t[BIAS_ROW], t[C], c->flags & ACCUMULATE);
}

static double flops(const struct op_case *c) {
    return 2.0 * (double)c->size[M] * (double)c->size[N] * (double)c->size[K];
}

const struct op_cases gemm_cases = {
    .name = "gemm",
    .tensor_count = TENSORS,
    .describe = describe,
    .cases = cases,
    .case_count = OP_COUNT(cases),
    .call = call,
    .workspace = workspace,
    .reference = reference,
    .naive = naive,
    .no_loss = OP_IS_FORWARD,
    .no_range = {[RANGE_SUBNORMAL] = "gemm: bf16 instructions of processors read subnormal operands as 0"},
    .no_aliases = OP_NO_ALIASES,
    .bench = bench,
    .bench_count = OP_COUNT(bench),
    .flops = flops,
};
