/* softmax_cases.c - shapes, tolerances, properties and bench points of softmax. */
#include <math.h>

#include "liger/ops/softmax/softmax.h"
#include "liger/ops/softmax/softmax_ref.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"
#include "tests/harness/rows_cases.h"

enum { X, Y, FORWARD_TENSORS };
enum { DY, BY, DX, BACKWARD_TENSORS };
enum { MASKED = 1, NOTHING = 2 }; /* two values of three, or all of them, are -inf */

/* Widths: 1, odd, around the blocks of the CPU; on CUDA one warp, several and the most that registers hold, a block of each
 * size, clusters, and what no cluster holds. */
#define SHAPES                                                                                                         \
    {.label = "3x7x37", .size = {3, 7, 37}}, {.label = "one element", .size = {0, -1, 1}},                             \
        {.label = "one row", .size = {0, -1, 40007}}, {.label = "6x2x512", .size = {6, 2, 512}},                       \
        {.label = "7x264", .size = {0, 7, 264}}, {.label = "5x4096", .size = {0, 5, 4096}},                            \
        {.label = "3x8200", .size = {0, 3, 8200}}, {.label = "1031x8", .size = {0, 1031, 8}},                          \
        {.label = "4x9x1", .size = {4, 9, 1}}, {.label = "9x1025", .size = {0, 9, 1025}},                              \
        {.label = "300x4104", .size = {0, 300, 4104}, .large = true}, {.label = "7x32000", .size = {0, 7, 32000}},     \
        {.label = "3x32768", .size = {0, 3, 32768}, .large = true},                                                    \
        {.label = "3x32776", .size = {0, 3, 32776}, .large = true},                                                    \
        {.label = "150x32768", .size = {0, 150, 32768}, .large = true, .dtypes = 1u << LIGER_BF16},                    \
        {.label = "40x131072", .size = {0, 40, 131072}, .large = true, .dtypes = 1u << LIGER_BF16},                    \
        {.label = "3x128256", .size = {0, 3, 128256}, .large = true},                                                  \
        {.label = "3x300001", .size = {0, 3, 300001}, .large = true},                                                  \
        {.label = "2x1000000", .size = {0, 2, 1000000}, .large = true},                                                \
        {.label = "no rows", .size = {0, 0, 40}, .edge = true}, {                                                      \
        .label = "no columns", .size = {2, 3, 0}, .edge = true                                                         \
    }

static const struct op_case bench[] = {
    {.label = "16384x4096", .size = {0, 16384, 4096}, .dtypes = 1u << LIGER_BF16, .large = true},
    {.label = "2048x32000", .size = {0, 2048, 32000}},
};

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    spec[X] = rows_tensor(c, "x", ROLE_IN);
    spec[X].spread = 2;
    spec[X].ranges = OP_EVERY_RANGE;
    spec[X].huge = 0x1p100;
    /* f32 steps: exponential, sum over the row, quotient, product: about 16 u of the largest. */
    spec[Y] = rows_tensor(c, "y", ROLE_OUT);
    spec[Y].relative = 1.05, spec[Y].absolute = 16;
}

static void mask(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    for (int64_t i = 0; (c->flags & (MASKED | NOTHING)) && i < elements_of(c); i++)
        if (c->flags & NOTHING || i % 3) t[X][i] = -INFINITY;
}

OP_DOOR(softmax_forward, NULL)

static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    softmax_forward_ref(rows_of(c), c->size[COLS], t[X], t[Y]);
}
static void naive_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    softmax_forward_naive(rows_of(c), c->size[COLS], t[X], t[Y]);
}

static const char *probabilities(struct op_run *run) { return rows_sum_to_one(run, Y, 16); }

static const struct op_case forward_cases[] = {
    SHAPES,
    {.label = "5x40 masked", .size = {0, 5, 40}, .flags = MASKED, .edge = true},
    {.label = "5x41 masked", .size = {0, 5, 41}, .flags = MASKED, .edge = true},
    {.label = "5x40 of -inf", .size = {0, 5, 40}, .flags = NOTHING, .edge = true},
};
static const struct op_property forward_properties[] = {{"rows of y sum to 1", probabilities}};

const struct op_cases softmax_forward_cases = {
    .name = "softmax_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(forward_cases),
    .prepare = mask,
    .call = call_softmax_forward,
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
    spec[BY] = rows_tensor(c, "y", ROLE_IN);
    /* magnitudes() has what the sum is relative to; it errs by its length at most, by sqrt of it as a rule. */
    spec[DX] = rows_tensor(c, "dx", ROLE_OUT);
    spec[DX].relative = 1.05, spec[DX].absolute = 16;
    spec[DX].steps = 2; /* of the terms of the sum, which y then divides again, and of the difference */
}

static void make_probabilities(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    softmax_forward_ref(rows_of(c), c->size[COLS], t[BY], t[BY]);
}

OP_DOOR(softmax_backward, NULL)

static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    softmax_backward_ref(rows_of(c), c->size[COLS], t[DY], t[BY], t[DX]);
}
static void naive_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    softmax_backward_naive(rows_of(c), c->size[COLS], t[DY], t[BY], t[DX]);
}

/* dy - Σ y·dy may cancel: the error is one of what is subtracted. */
static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    const int64_t cols = c->size[COLS];
    (void)types;
    for (int64_t r = 0; r < rows_of(c); r++) {
        const double *dy = t[DY] + r * cols, *y = t[BY] + r * cols;
        double sum = 0;
        for (int64_t j = 0; j < cols; j++) sum += fabs(y[j] * dy[j]);
        for (int64_t j = 0; j < cols; j++) magnitude[DX] = fmax(magnitude[DX], fabs(y[j]) * (fabs(dy[j]) + sum));
    }
}

/* A shift of all logits changes nothing, so the gradient has no component along it. */
static const char *rows_sum_to_zero(struct op_run *run) {
    const int64_t cols = run->c.size[COLS];
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    for (int64_t r = 0; r < rows_of(&run->c); r++) {
        double sum = 0, all = 0, of_y = 0, dot = 0;
        for (int64_t j = 0; j < cols; j++) {
            const double dx = run->t[DX][r * cols + j], y = run->t[BY][r * cols + j];
            sum += dx, all += fabs(dx), of_y += y, dot += y * run->t[DY][r * cols + j];
        }
        /* y is rounded, and sums to 1 only nearly */
        const double steps = run->types.t == LIGER_F16 ? (double)cols * 0x1p-25 : 0;
        const double limit =
            all * (format_unit(run->types.t) + 64 * 0x1p-24) + fabs(dot) * (fabs(of_y - 1) + 0x1p-20) + steps;
        if (!(fabs(sum) <= limit))
            return op_run_text(run, "row %lld of dx sums to %g, allowed is %g", (long long)r, sum, limit);
    }
    return NULL;
}

static const struct op_case backward_cases[] = {SHAPES};
static const struct op_property backward_properties[] = {{"rows of dx sum to 0", rows_sum_to_zero}};

const struct op_cases softmax_backward_cases = {
    .name = "softmax_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(backward_cases),
    .prepare = make_probabilities,
    .call = call_softmax_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes,
    .no_loss = "softmax: backward is given y, and x, which dx is the gradient of, is no argument",
    OP_PROPERTIES(backward_properties),
    OP_BENCH(bench),
};
