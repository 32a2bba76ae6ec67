/* embedding_cases.c - shapes, tolerances and bench points of embedding. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "liger/ops/embedding/embedding.h"
#include "liger/ops/embedding/embedding_ref.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { TOKENS, VOCAB, COLS };
enum { PADDED = 1, FREQUENT = 2, ONE_ROW = 4 };
enum { PADDING = 3 };

/* Sorted tokens are cut every 512 and merged 1024 at a time, 16 runs in one go. */
static const struct op_case cases[] = {
    {.label = "7 of 5x33", .size = {7, 5, 33}, .flags = PADDED},
    {.label = "9 of 5x33", .size = {9, 5, 33}},
    {.label = "1 of 1x1", .size = {1, 1, 1}},
    {.label = "20 of 9x15", .size = {20, 9, 15}},
    {.label = "20 of 9x16", .size = {20, 9, 16}, .flags = PADDED},
    {.label = "20 of 9x17", .size = {20, 9, 17}},
    {.label = "64 of 40x64", .size = {64, 40, 64}, .flags = FREQUENT},
    {.label = "5 of 700x40", .size = {5, 700, 40}},
    {.label = "33 of 4100x3", .size = {33, 4100, 3}},
    {.label = "3000 of 7x24", .size = {3000, 7, 24}},
    {.label = "2000 of 50x40, one row", .size = {2000, 50, 40}, .flags = ONE_ROW},
    {.label = "1537 of 3000x8, frequent", .size = {1537, 3000, 8}, .flags = FREQUENT | PADDED},
    {.label = "300 of 1000x4096", .size = {300, 1000, 4096}, .large = true},
    {.label = "700 of 300x2560, frequent", .size = {700, 300, 2560}, .flags = FREQUENT, .large = true},
    {.label = "17000 of 5000x64, frequent", .size = {17000, 5000, 64}, .flags = FREQUENT, .large = true},
    {.label = "40000 of 3x8", .size = {40000, 3, 8}, .large = true},
    /* On CUDA three kernels sort, and rows are cleared meanwhile; and some rows of a large table are. */
    {.label = "17000 of 20000x16", .size = {17000, 20000, 16}, .large = true},
    {.label = "700 of 20000x2048, frequent",
     .size = {700, 20000, 2048},
     .flags = FREQUENT,
     .dtypes = 1u << LIGER_BF16,
     .large = true},
    {.label = "400 of 70001x65", .size = {400, 70001, 65}, .large = true},
    {.label = "4 of 3x70001", .size = {4, 3, 70001}, .large = true},
    {.label = "no tokens", .size = {0, 5, 33}, .edge = true},
    {.label = "no columns", .size = {5, 4, 0}, .edge = true},
    {.label = "nothing", .size = {0, 0, 9}, .edge = true},
};
static const struct op_case bench[] = {
    {.label = "2048 of 32000x1024", .size = {2048, 32000, 1024}},
    {.label = "16384 of 128256x4096", .size = {16384, 128256, 4096}, .dtypes = 1u << LIGER_BF16, .large = true},
    {.label = "16384 of 128256x4096, one row",
     .size = {16384, 128256, 4096},
     .flags = ONE_ROW,
     .dtypes = 1u << LIGER_BF16,
     .large = true},
};

static struct tensor_spec matrix(const char *name, enum tensor_role role, int64_t rows, int64_t cols) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_T,
                                .ndim = 2,
                                .shape = {rows, cols},
                                .gaps = true,
                                .specials = true,
                                .ranges = role == ROLE_IN ? OP_EVERY_RANGE : 0};
}
static struct tensor_spec numbers(const struct op_case *c) {
    return (struct tensor_spec){.name = "indices",
                                .kind = KIND_INDEX,
                                .values = VALUES_TARGET,
                                .spread = (double)c->size[VOCAB],
                                .offset = PADDING,
                                .ignore_every = c->flags & PADDED ? 3 : 0,
                                .ndim = 1,
                                .shape = {c->size[TOKENS]}};
}

/* Two of three tokens, or all, are of a few rows. */
static void repeat(const struct op_case *c, double *indices) {
    const int few = c->flags & ONE_ROW ? 1 : 5;
    for (int64_t i = 0; c->flags & (FREQUENT | ONE_ROW) && i < c->size[TOKENS]; i++)
        if (few == 1 || i % 3) indices[i] = (double)((int64_t)indices[i] % few * c->size[VOCAB] / few);
}

static struct embedding_ref problem(const struct op_case *c, const double *indices) {
    const int64_t padding = c->flags & PADDED ? PADDING : -1;
    return (struct embedding_ref){c->size[TOKENS], c->size[VOCAB], c->size[COLS], padding, indices};
}

/* The refusal on the CPU; elsewhere NULL, and `status` is right. */
static const char *refused(struct op_run *run, liger_status status, int64_t token, double value) {
    char text[80];
    snprintf(text, sizeof text, "indices[%lld] is %lld, which is out of bounds", (long long)token, (long long)value);
    if (liger_context_device(run->context) != LIGER_DEVICE_CPU)
        return status == LIGER_OK ? NULL : op_run_text(run, "the status was %s", liger_status_name(status));
    if (status != LIGER_ERR_TARGET) return op_run_text(run, "the status was %s", liger_status_name(status));
    return strstr(liger_last_error(), text) ? NULL : op_run_text(run, "the message was: %s", liger_last_error());
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

enum { WEIGHT, INDICES, Y, FORWARD_TENSORS };

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    spec[WEIGHT] = matrix("weight", ROLE_IN, c->size[VOCAB], c->size[COLS]);
    spec[INDICES] = numbers(c);
    spec[Y] = matrix("y", ROLE_OUT, c->size[TOKENS], c->size[COLS]); /* budget 0: nothing is rounded */
}

static void prepare_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    repeat(c, t[INDICES]);
}

static void forward_options(const struct op_case *c, void *args) {
    ((liger_embedding_forward_args *)args)->padding_index = c->flags & PADDED ? PADDING : -1;
}
OP_DOOR(embedding_forward, forward_options)

static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    const struct embedding_ref p = problem(c, t[INDICES]);
    embedding_forward_ref(&p, t[WEIGHT], t[Y]);
}

/* The CPU says which; elsewhere its row is NaN and the others are what they are. */
static const char *forward_out_of_range(struct op_run *run) {
    const int64_t last = run->c.size[TOKENS] - 1, cols = run->c.size[COLS];
    const double beyond[] = {(double)run->c.size[VOCAB], -1};
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    const double before = last > 0 ? run->t[Y][0] : 0;
    for (int i = 0; i < 2; i++) {
        run->t[INDICES][last] = beyond[i];
        const liger_status status = op_run_call(run);
        const char *wrong = refused(run, status, last, beyond[i]);
        if (wrong || status != LIGER_OK) return wrong;
        for (int64_t k = 0; k < cols; k++)
            if (!isnan(run->t[Y][last * cols + k])) return op_run_text(run, "y is %g", run->t[Y][last * cols + k]);
        if (last > 0 && run->t[Y][0] != before) return "another row has changed";
    }
    return NULL;
}

static const struct op_property forward_properties[] = {{"an index out of range", forward_out_of_range}};
static const struct op_provocation forward_provocations[] = {
    {"a number of tokens that no key has room for",
     OP_SHAPE(INDICES, 0, 4294967296.0),
     LIGER_ERR_SHAPE,
     {"embedding_forward: there are 4294967296 tokens", "4294967295"}},
};

const struct op_cases embedding_forward_cases = {
    .name = "embedding_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .prepare = prepare_forward,
    .call = call_embedding_forward,
    .reference = reference_forward,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    OP_PROPERTIES(forward_properties),
    OP_PROVOCATIONS(forward_provocations),
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

enum { DY, B_INDICES, DWEIGHT, BACKWARD_TENSORS };

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    spec[DY] = matrix("dy", ROLE_IN, c->size[TOKENS], c->size[COLS]);
    spec[DY].huge = 0x1p100; /* no sum may overflow */
    spec[B_INDICES] = numbers(c);
    spec[DWEIGHT] = matrix("dweight", ROLE_OUT, c->size[VOCAB], c->size[COLS]);
    /* magnitudes() has the root of squares of what a sum's roundings may be: 4 of it are 7 standard deviations. */
    spec[DWEIGHT].relative = 1.01, spec[DWEIGHT].absolute = 4;
}

static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    repeat(c, t[B_INDICES]);
}

static void backward_options(const struct op_case *c, void *args) {
    ((liger_embedding_backward_args *)args)->padding_index = c->flags & PADDED ? PADDING : -1;
}
OP_DOOR(embedding_backward, backward_options)
OP_DOOR_WORKSPACE(embedding_backward)

OP_EVALUATED(backward, struct embedding_ref, problem(c, t[B_INDICES]), embedding_backward_ref, embedding_backward_naive,
             t[DY], t[DWEIGHT])

/* Every addition is off by u of what it comes to: all of them by as much as their root of squares, as a rule. The largest
 * of all rows and columns, with the tokens in their order. */
static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    double *const sum = calloc((size_t)c->size[VOCAB] * 2 + 1, sizeof *sum), *const walk = sum + c->size[VOCAB];
    (void)types;
    for (int64_t k = 0; sum && k < c->size[COLS]; k++) {
        memset(sum, 0, (size_t)c->size[VOCAB] * 2 * sizeof *sum);
        for (int64_t i = 0; i < c->size[TOKENS]; i++) {
            const int64_t row = (int64_t)t[B_INDICES][i];
            const double value = t[DY][i * c->size[COLS] + k];
            if (row < 0 || row >= c->size[VOCAB] || !isfinite(value)) continue;
            sum[row] += value;
            walk[row] = hypot(walk[row], sum[row]);
            magnitude[DWEIGHT] = fmax(magnitude[DWEIGHT], walk[row]);
        }
    }
    free(sum);
}

/* The CPU says which; elsewhere no row has got anything of its dy, and the others' are as without it. */
static const char *backward_out_of_range(struct op_run *run) {
    const int64_t last = run->c.size[TOKENS] - 1, cols = run->c.size[COLS];
    run->t[B_INDICES][last] = (double)run->c.size[VOCAB];
    for (int64_t k = 0; k < cols; k++) run->t[DY][last * cols + k] = NAN;
    const liger_status status = op_run_call(run);
    const char *wrong = refused(run, status, last, (double)run->c.size[VOCAB]);
    for (int64_t i = 0; !wrong && status == LIGER_OK && i < run->count[DWEIGHT]; i++)
        if (isnan(run->t[DWEIGHT][i])) wrong = op_run_text(run, "dweight[%lld] is NaN", (long long)i);
    return wrong;
}

/* A few whole numbers add up exactly, in any order: the sums of all rows are those of dy, but for the padding. */
static const char *nothing_is_lost(struct op_run *run) {
    const int64_t cols = run->c.size[COLS], padding = run->c.flags & PADDED ? PADDING : -1;
    for (int64_t i = 0; i < run->count[DY]; i++) run->t[DY][i] = i / cols % 7 == 0 ? (double)(i % 3 - 1) : 0;
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    for (int64_t k = 0; k < cols; k++) {
        double given = 0, found = 0;
        for (int64_t i = 0; i < run->c.size[TOKENS]; i++)
            if ((int64_t)run->t[B_INDICES][i] != padding) given += run->t[DY][i * cols + k];
        for (int64_t v = 0; v < run->c.size[VOCAB]; v++) found += run->t[DWEIGHT][v * cols + k];
        if (given != found)
            return op_run_text(run, "column %lld: dy adds up to %g, dweight to %g", (long long)k, given, found);
    }
    return NULL;
}

static const struct op_property backward_properties[] = {
    {"an index out of range", backward_out_of_range},
    {"the sum over all rows", nothing_is_lost},
};
static const struct op_provocation backward_provocations[] = {
    {"a table with more rows than a key has room for",
     OP_SHAPE(DWEIGHT, 0, 4294967296.0),
     LIGER_ERR_SHAPE,
     {"embedding_backward: there are 4294967296 rows of the table", "4294967295"}},
};

const struct op_cases embedding_backward_cases = {
    .name = "embedding_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare_backward,
    .call = call_embedding_backward,
    .workspace = workspace_embedding_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .magnitudes = magnitudes,
    .no_loss = "embedding: forward is linear, and backward is not given the weight, which dweight is the gradient of",
    .no_aliases = OP_NO_ALIASES,
    OP_PROPERTIES(backward_properties),
    OP_PROVOCATIONS(backward_provocations),
    OP_BENCH(bench),
};
