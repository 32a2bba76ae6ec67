/* sparsemax_cases.c - shapes, tolerances, properties and bench points of sparsemax. */
#include <math.h>
#include <string.h>

#include "liger/ops/sparsemax/sparsemax.h"
#include "liger/ops/sparsemax/sparsemax_ref.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"
#include "tests/harness/rows_cases.h"

enum { X, Y, BITS, FORWARD_TENSORS };
enum { DY, SUPPORT, DX, BACKWARD_TENSORS };
/* Rows that are hard, in turn (see hard_value); all of a size that is uniform; nothing but -inf. */
enum { HARD = 1, UNIFORM = 2, NOTHING = 4 };

static struct tensor_spec bits_of(const struct op_case *c, enum tensor_role role) {
    return (struct tensor_spec){.name = "support",
                                .role = role,
                                .kind = KIND_I32,
                                .values = VALUES_ZERO,
                                .ndim = 2,
                                .shape = {rows_of(c), (c->size[COLS] + 31) / 32}};
}

/* Widths: 1, odd, around words; on CUDA one warp, several and the most that registers hold, blocks of each size, clusters,
 * and what no cluster holds. */
#define SHAPES                                                                                                         \
    {.label = "3x7x37", .size = {3, 7, 37}}, {.label = "one element", .size = {0, -1, 1}},                             \
        {.label = "one row", .size = {0, -1, 40007}}, {.label = "6x2x512", .size = {6, 2, 512}},                       \
        {.label = "1031x8", .size = {0, 1031, 8}}, {.label = "4x9x1", .size = {4, 9, 1}},                              \
        {.label = "9x1032", .size = {0, 9, 1032}}, {.label = "5x4096", .size = {0, 5, 4096}},                          \
        {.label = "5x8200", .size = {0, 5, 8200}}, {.label = "300x4104", .size = {0, 300, 4104}, .large = true},       \
        {.label = "7x32776", .size = {0, 7, 32776}}, {.label = "3x128256", .size = {0, 3, 128256}, .large = true},     \
        {.label = "3x300001", .size = {0, 3, 300001}, .large = true},                                                  \
        {.label = "2x1000000", .size = {0, 2, 1000000}, .large = true},                                                \
        {.label = "no rows", .size = {0, 0, 40}, .edge = true}, {                                                      \
        .label = "no columns", .size = {2, 3, 0}, .edge = true                                                         \
    }

/* As others measure it: f32, random rows. */
static const struct op_case bench[] = {
    {.label = "4096x4096", .size = {0, 4096, 4096}, .dtypes = 1u << LIGER_F32, .large = true},
    {.label = "2048x32000", .size = {0, 2048, 32000}},
};

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    spec[X] = rows_tensor(c, "x", ROLE_IN);
    spec[X].ranges = OP_EVERY_RANGE;
    spec[X].huge = 0x1p100;
    /* tau is known to more than f32, its distance to x is rounded twice at most. */
    spec[Y] = rows_tensor(c, "y", ROLE_OUT);
    spec[Y].relative = 1.05, spec[Y].absolute = 2;
    spec[BITS] = bits_of(c, ROLE_OUT);
}

/* Ties, one value far above the rest, a constant, a large offset, neighbouring floats, -inf but for one, what tau is exactly,
 * a slope on which the support ends, and values next to nothing below 1. */
static double hard_value(int64_t kind, int64_t j, double random) {
    switch (kind % 10) {
        case 0: return j % 3 ? -1 : 2;
        case 1: return j == 0 ? 50 : random;
        case 2: return -7.25;
        case 3: return 32768 + random * 16;
        case 4: return 1 + (double)(j % 5) * 0x1p-23;
        case 5: return j == 3 ? random : -INFINITY;
        case 6: return j < 2 ? 3 - 0.5 * (double)j : 2.25;
        case 7: return -(double)j * 0x1p-6;
        case 8: return j == 0 ? 1 : 0x1p-30;
        default: return j == 0 ? 1 : 0;
    }
}

static void make_rows(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t i = 0; c->flags && i < elements_of(c); i++) {
        double *const x = t[X] + i;
        if (c->flags & HARD) *x = hard_value(i / c->size[COLS], i % c->size[COLS], *x);
        if (c->flags & UNIFORM) *x = fmod(fabs(*x) * 64, 1);
        if (c->flags & NOTHING) *x = -INFINITY;
    }
}

OP_DOOR(sparsemax_forward, NULL)

static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    sparsemax_forward_ref(rows_of(c), c->size[COLS], t[X], t[Y], t[BITS]);
}
static void naive_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    sparsemax_forward_naive(rows_of(c), c->size[COLS], t[X], t[Y], t[BITS]);
}

static const char *probabilities(struct op_run *run) { return rows_sum_to_one(run, Y, 2); }

#define HARD_ROWS(columns)                                                                                             \
    { .label = "20 hard rows of " #columns, .size = {0, 20, columns}, .flags = HARD }
static const struct op_case forward_cases[] = {
    SHAPES,
    HARD_ROWS(4),
    HARD_ROWS(37),
    HARD_ROWS(512),
    HARD_ROWS(4096),
    HARD_ROWS(8200),
    {.label = "20 hard rows of 70000", .size = {0, 20, 70000}, .flags = HARD, .large = true},
    {.label = "20 hard rows of 140000", .size = {0, 20, 140000}, .flags = HARD, .large = true},
    {.label = "5x40 uniform", .size = {0, 5, 40}, .flags = UNIFORM},
    {.label = "5x8192 uniform", .size = {0, 5, 8192}, .flags = UNIFORM},
    {.label = "3x40001 uniform", .size = {0, 3, 40001}, .flags = UNIFORM},
    {.label = "5x40 of -inf", .size = {0, 5, 40}, .flags = NOTHING, .edge = true},
};
static const struct op_property forward_properties[] = {{"rows of y sum to 1", probabilities}};

const struct op_cases sparsemax_forward_cases = {
    .name = "sparsemax_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(forward_cases),
    .prepare = make_rows,
    .call = call_sparsemax_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .no_loss = OP_IS_FORWARD,
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    spec[DY] = rows_tensor(c, "dy", ROLE_IN);
    spec[DY].ranges = OP_EVERY_RANGE;
    spec[DY].huge = 0x1p100;
    spec[SUPPORT] = bits_of(c, ROLE_IN);
    /* magnitudes() has what the mean is of; the sum errs by its length at most, by sqrt of it as a rule. */
    spec[DX] = rows_tensor(c, "dx", ROLE_OUT);
    spec[DX].relative = 1.05, spec[DX].absolute = 16;
}

/* Everything, one element, a third, what is random, nothing: row by row, or all in a row. */
static bool in_support(int64_t kind, int64_t j, int64_t cols, double random) {
    switch (kind % 5) {
        case 0: return random > 0.5;
        case 1: return true;
        case 2: return j == cols / 2;
        case 3: return j % 3 == 1;
        default: return false;
    }
}

static void make_support(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t cols = c->size[COLS], words = (cols + 31) / 32;
    (void)types;
    for (int64_t w = 0; w < rows_of(c) * words; w++) {
        uint32_t word = cols % 32 && w % words == words - 1 ? UINT32_MAX << cols % 32 : 0; /* does not matter */
        for (int64_t j = w % words * 32; j < cols && j < (w % words + 1) * 32; j++)
            word |= (uint32_t)in_support(w / words, j, cols, t[DY][w / words * cols + j]) << j % 32;
        t[SUPPORT][w] = (int32_t)word;
    }
}

OP_DOOR(sparsemax_backward, NULL)

static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    sparsemax_backward_ref(rows_of(c), c->size[COLS], t[DY], t[SUPPORT], t[DX]);
}
static void naive_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    sparsemax_backward_naive(rows_of(c), c->size[COLS], t[DY], t[SUPPORT], t[DX]);
}

static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    (void)types;
    for (int64_t i = 0; i < elements_of(c); i++) magnitude[DX] = fmax(magnitude[DX], fabs(t[DY][i]));
}

/* A shift of all values changes nothing, so the gradient has no component along it. */
static const char *rows_sum_to_zero(struct op_run *run) {
    const int64_t cols = run->c.size[COLS];
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    for (int64_t r = 0; r < rows_of(&run->c); r++) {
        double sum = 0, all = 0, above = 0;
        for (int64_t j = 0; j < cols; j++) {
            const double dx = run->t[DX][r * cols + j];
            sum += dx, all += fabs(dx), above += fabs(run->t[DY][r * cols + j]);
        }
        const double limit = all * (format_unit(run->types.t) + 16 * 0x1p-24) + above * 16 * 0x1p-24;
        if (!(fabs(sum) <= limit))
            return op_run_text(run, "row %lld of dx sums to %g, allowed is %g", (long long)r, sum, limit);
    }
    return NULL;
}

static const struct op_case backward_cases[] = {SHAPES};
static const struct op_property backward_properties[] = {{"rows of dx sum to 0", rows_sum_to_zero}};

const struct op_cases sparsemax_backward_cases = {
    .name = "sparsemax_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(backward_cases),
    .prepare = make_support,
    .call = call_sparsemax_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes,
    .no_loss = "sparsemax: backward is given the support, and x, which dx is the gradient of, is no argument",
    OP_PROPERTIES(backward_properties),
    OP_BENCH(bench),
};
