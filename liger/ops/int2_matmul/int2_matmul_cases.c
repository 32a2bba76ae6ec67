/* int2_matmul_cases.c - shapes and views of the int8 x int2 product. Integers: every element must be equal. */
#include "liger/ops/int2_matmul/int2_matmul.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

void int2_matmul_ref(int64_t m, int64_t n, int64_t packed, const double *a, const double *b, double *c);

enum { A, B, C, TENSORS };
enum { M, N, PACKED };
enum {
    TRANSPOSED = 1,
    EXTREME = 2,
    POSITIVE = 4
}; /* b seen from the other side; every a is -128 or 127, and 2 the weight */

static void describe(const struct op_case *c, struct tensor_spec *spec) {
    const int64_t m = c->size[M], n = c->size[N], packed = c->size[PACKED];
    spec[A] = (struct tensor_spec){.name = "a",
                                   .kind = KIND_I8,
                                   .values = VALUES_INTEGER,
                                   .spread = 256,
                                   .offset = -128,
                                   .ndim = 2,
                                   .shape = {m, 4 * packed},
                                   .gaps = true};
    spec[B] = (struct tensor_spec){.name = "b",
                                   .kind = KIND_U8,
                                   .values = VALUES_INTEGER,
                                   .spread = 256,
                                   .ndim = 2,
                                   .shape = {packed, n},
                                   .gaps = true};
    if (c->flags & TRANSPOSED) spec[B].order[0] = 1;
    spec[C] =
        (struct tensor_spec){.name = "c", .role = ROLE_OUT, .kind = KIND_I32, .ndim = 2, .shape = {m, n}, .gaps = true};
}

/* As far from zero as a sum gets. */
static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    if (!(c->flags & EXTREME)) return;
    for (int64_t i = 0; i < c->size[M] * 4 * c->size[PACKED]; i++) t[A][i] = c->flags & POSITIVE ? 127 : -128;
    for (int64_t i = 0; i < c->size[PACKED] * c->size[N]; i++) t[B][i] = 255;
}

OP_DOOR(int2_matmul, NULL)
OP_DOOR_WORKSPACE(int2_matmul)

static void reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    int2_matmul_ref(c->size[M], c->size[N], c->size[PACKED], t[A], t[B], t[C]);
}

/* Weights of 1 alone make every element the sum of its row, of 0 alone nothing. */
static const char *plain_weights(struct op_run *run) {
    const int64_t m = run->c.size[M], n = run->c.size[N], packed = run->c.size[PACKED], k = 4 * packed;
    for (int weight = -1; weight <= 2; weight++) {
        for (int64_t i = 0; i < packed * n; i++) run->t[B][i] = 0x55 * (weight + 1);
        if (op_run_call(run) != LIGER_OK) return "the call failed";
        for (int64_t i = 0; i < m; i++) {
            double sum = 0;
            for (int64_t p = 0; p < k; p++) sum += run->t[A][i * k + p];
            for (int64_t j = 0; j < n; j++)
                if (run->t[C][i * n + j] != weight * sum)
                    return op_run_text(run, "row %lld with weights %d is %g, and not %g", (long long)i, weight,
                                       run->t[C][i * n + j], weight * sum);
        }
    }
    return NULL;
}
static const struct op_property properties[] = {{"weights that are all alike", plain_weights}};

/* One choice of dtypes: T is in none of the arguments. Shapes: tiles of every backend and one beside them, a row, few rows,
 * packed rows of whole 16 and of odd numbers, and more k than the CPU packs at a time. */
#define ONCE .dtypes = 1u << LIGER_F32
/* clang-format off */
static const struct op_case cases[] = {
    {"9x7x12",                  {9, 7, 3},         ONCE},
    {"5x7x12",                  {5, 7, 3},         ONCE},
    {"1x1x4",                   {1, 1, 1},         ONCE},
    {"1x33x64",                 {1, 33, 16},       ONCE},
    {"3x64x260",                {3, 64, 65},       ONCE},
    {"8x132x72",                {8, 132, 18},      ONCE},
    {"9x128x128",               {9, 128, 32},      ONCE},
    {"17x31x68",                {17, 31, 17},      ONCE},
    {"32x32x64",                {32, 32, 16},      ONCE},
    {"33x70x2052",              {33, 70, 513},     ONCE},
    {"14x65x252",               {14, 65, 63},      ONCE},
    {"128x128x64",              {128, 128, 16},    ONCE},
    {"129x257x320",             {129, 257, 80},    ONCE},
    {"5x7x12 transposed",       {5, 7, 3},         ONCE, .flags = TRANSPOSED},
    {"40x36x192 transposed",    {40, 36, 48},      ONCE, .flags = TRANSPOSED},
    {"3x130x516 transposed",    {3, 130, 129},     ONCE, .flags = TRANSPOSED},
    {"20x9x4096 least",         {20, 9, 1024},     ONCE, .flags = EXTREME},
    {"20x9x4096 most",          {20, 9, 1024},     ONCE, .flags = EXTREME | POSITIVE},
    {"530x300x640",             {530, 300, 160},   ONCE, .large = true},
    {"70x1100x1024",            {70, 1100, 256},   ONCE, .large = true},
    {"37x50x9236",              {37, 50, 2309},    ONCE, .large = true},
    {"2x4100x8192",             {2, 4100, 2048},   ONCE, .large = true},
    {"300x260x1088",            {300, 260, 272},   ONCE, .large = true},
    {"257x8449x192",            {257, 8449, 48},   ONCE, .large = true},
    {"m = 0",                   {0, 7, 3},         ONCE, .edge = true},
    {"n = 0",                   {5, 0, 3},         ONCE, .edge = true},
    {"k = 0",                   {5, 7, 0},         ONCE, .edge = true},
    {"k = 0, many rows",        {40, 70, 0},       ONCE, .edge = true},
    {"sums that wrap around",   {1, 2, (1 << 21) + 1}, ONCE, .flags = EXTREME, .edge = true},
};
static const struct op_case bench[] = {
    {"4096x14336x4096",         {4096, 14336, 1024}, ONCE, .large = true},
    {"1x14336x4096",            {1, 14336, 1024},    ONCE, .large = true},
    {"410x1434x4096",           {410, 1434, 1024},   ONCE},
};
/* clang-format on */

static double flops(const struct op_case *c) {
    return 8.0 * (double)c->size[M] * (double)c->size[N] * (double)c->size[PACKED];
}

#define NO_RANGE "integers: every value of the dtypes is drawn"
const struct op_cases int2_matmul_cases = {
    .name = "int2_matmul",
    .tensor_count = TENSORS,
    .describe = describe,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_int2_matmul,
    .workspace = workspace_int2_matmul,
    .reference = reference,
    .no_naive = "integers: sums are exact",
    .no_loss = OP_IS_FORWARD,
    .no_range = {NO_RANGE, NO_RANGE, NO_RANGE, NO_RANGE},
    .no_aliases = OP_NO_ALIASES,
    OP_PROPERTIES(properties),
    OP_BENCH(bench),
    .flops = flops,
};
