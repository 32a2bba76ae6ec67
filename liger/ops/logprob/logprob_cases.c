/* logprob_cases.c - shapes, tolerances and bench points of log-probabilities of logits that are there. */
#include <math.h>
#include <stdlib.h>

#include "liger/core/context_state.h"
#include "liger/ops/linear_logprob/linear_logprob.h"
#include "liger/ops/logprob/logprob_ref.h"
#include "tests/harness/op_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { LOGITS, TARGET, LOG_PROB, ENTROPY, LSE, SQUARES, MEAN, IS_TOP1, NORMALIZER, FORWARD_TENSORS };
enum {
    OF_LOG_PROB = LOG_PROB,
    OF_NORMALIZER,
    OF_ENTROPY,
    OF_SQUARES,
    D_LOG_PROB,
    D_ENTROPY,
    D_LSE,
    D_SQUARES,
    D_MEAN,
    DLOGITS,
    BACKWARD_TENSORS
};
enum { ROWS, VOCAB };
enum { SCALE, SOFTCAP, TEMPERATURE };
enum {
    HAS_LOG_PROB = 1, /* results, or in backward their upstreams */
    HAS_ENTROPY = 2,
    HAS_LSE = 4,
    HAS_SQUARES = 8,
    HAS_MEAN = 16,
    HAS_TOP1 = 32,
    HAS_NORMALIZER = 64,
    ALL = 127,
    COUNTED = 128,   /* no row is ignored; else every third one */
    IGNORED = 256,   /* every row is */
    MASKED = 512,    /* every third logit but the target's is -inf */
    SHIFTED = 1024,  /* all logits are about 1024 */
    POISON = 2048,   /* ignored rows hold a NaN, their upstreams too */
    INFINITE = 4096, /* the first logit of a row is +inf */
};
#define PLAIN                                                                                                          \
    { 1, 0, 1 }

/* A soft cap in f32 is linear_logprob's: here an element's error is that of its own tanh, which is twice libm's. */
#define CAPPED_DTYPES (1u << LIGER_BF16 | 1u << LIGER_F16)
#define SHAPES                                                                                                         \
    {.label = "7x33", .size = {7, 33}, .scalar = {1.5, 0, .7}, .flags = ALL},                                          \
        {.label = "7x34 cap", .size = {7, 34}, .scalar = {1.5, 6, .7}, .flags = ALL, .dtypes = CAPPED_DTYPES},         \
        {.label = "1x1", .size = {1, 1}, .scalar = PLAIN, .flags = ALL},                                               \
        {.label = "5x2", .size = {5, 2}, .scalar = PLAIN, .flags = ALL},                                               \
        {.label = "6x15", .size = {6, 15}, .scalar = PLAIN, .flags = ALL},                                             \
        {.label = "6x16", .size = {6, 16}, .scalar = {-1.3, 0, 1}, .flags = ALL},                                      \
        {.label = "12x64, none ignored", .size = {12, 64}, .scalar = PLAIN, .flags = ALL | COUNTED},                   \
        {.label = "9x35 log_prob", .size = {9, 35}, .scalar = {1, 0, .6}, .flags = HAS_LOG_PROB},                      \
        {.label = "9x35 entropy", .size = {9, 35}, .scalar = PLAIN, .flags = HAS_ENTROPY},                             \
        {.label = "9x35 lse", .size = {9, 35}, .scalar = PLAIN, .flags = HAS_LSE},                                     \
        {.label = "9x35 log_sum_sq_probs", .size = {9, 35}, .scalar = PLAIN, .flags = HAS_SQUARES},                    \
        {.label = "9x35 mean_logits", .size = {9, 35}, .scalar = PLAIN, .flags = HAS_MEAN},                            \
        {.label = "9x35 nothing", .size = {9, 35}, .scalar = PLAIN},                                                   \
        {.label = "14x47 masked",                                                                                      \
         .size = {14, 47},                                                                                             \
         .scalar = PLAIN,                                                                                              \
         .flags = (ALL & ~HAS_MEAN) | MASKED,                                                                          \
         .edge = true},                                                                                                \
        {.label = "14x47 shifted", .size = {14, 47}, .scalar = PLAIN, .flags = ALL | SHIFTED, .edge = true},           \
        {.label = "300x131", .size = {300, 131}, .scalar = PLAIN, .flags = ALL | COUNTED},                             \
        {.label = "5x4099", .size = {5, 4099}, .scalar = PLAIN, .flags = ALL, .large = true},                          \
        {.label = "2x70001", .size = {2, 70001}, .scalar = PLAIN, .flags = ALL | COUNTED, .large = true},              \
        {.label = "no rows", .size = {0, 33}, .scalar = PLAIN, .flags = ALL, .edge = true},                            \
        {.label = "all ignored", .size = {5, 33}, .scalar = PLAIN, .flags = ALL | IGNORED, .edge = true}, {            \
        .label = "NaN in ignored rows", .size = {7, 33}, .scalar = PLAIN, .flags = ALL | POISON, .edge = true          \
    }

static const struct op_case forward_cases[] = {
    SHAPES,
    {.label = "a logit of +inf", .size = {7, 33}, .scalar = PLAIN, .flags = ALL | INFINITE, .edge = true},
};
static const struct op_case backward_cases[] = {SHAPES};
static const struct op_case bench[] = {
    {.label = "1024x32000", .size = {1024, 32000}, .scalar = PLAIN, .flags = HAS_LOG_PROB | HAS_NORMALIZER | COUNTED},
    {.label = "4096x128256",
     .size = {4096, 128256},
     .scalar = PLAIN,
     .flags = HAS_LOG_PROB | HAS_NORMALIZER | COUNTED,
     .large = true,
     .dtypes = 1u << LIGER_BF16},
};

static bool has(const struct op_case *c, uint32_t flag) { return (c->flags & flag) != 0; }

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

static struct tensor_spec matrix(const struct op_case *c, const char *name, enum tensor_role role) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_T,
                                .spread = 1.5,
                                .ndim = 2,
                                .shape = {c->size[ROWS], c->size[VOCAB]},
                                .gaps = true};
}

static struct tensor_spec numbers(const struct op_case *c, const char *name, enum tensor_role role, uint32_t flag) {
    return (struct tensor_spec){
        .name = name, .role = role, .kind = KIND_F32, .ndim = 1, .shape = {c->size[ROWS]}, .absent = !has(c, flag)};
}

static void describe_operands(const struct op_case *c, struct tensor_spec *spec) {
    spec[LOGITS] = matrix(c, "logits", ROLE_IN);
    spec[TARGET] = (struct tensor_spec){.name = "target",
                                        .kind = KIND_INDEX,
                                        .values = VALUES_TARGET,
                                        .spread = (double)c->size[VOCAB],
                                        .offset = -100,
                                        .ignore_every = has(c, COUNTED)   ? 0
                                                        : has(c, IGNORED) ? 1
                                                                          : 3,
                                        .ndim = 1,
                                        .shape = {c->size[ROWS]}};
}

/* What a z may be off by, in u of |z|, which is 8 at most: two roundings with a factor; of a soft cap those, tanh's 4 u and one
 * more. */
static double error_of_z(const struct op_case *c) {
    if (c->scalar[SOFTCAP] > 0) return 7 * 8;
    return c->scalar[SCALE] == c->scalar[TEMPERATURE] ? 0 : 2 * 8;
}

/* An exponential takes 4 u, the sum over a row some 16 more, logarithm and differences the rest: 32 u. Where the most probable
 * class is not the target, a logarithm of about 1 has an error of some u that nothing makes small. */
static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    describe_operands(c, spec);
    spec[LOG_PROB] = numbers(c, "log_prob", ROLE_OUT, HAS_LOG_PROB);
    spec[ENTROPY] = numbers(c, "entropy", ROLE_OUT, HAS_ENTROPY);
    spec[LSE] = numbers(c, "lse", ROLE_OUT, HAS_LSE);
    spec[SQUARES] = numbers(c, "log_sum_sq_probs", ROLE_OUT, HAS_SQUARES);
    spec[MEAN] = numbers(c, "mean_logits", ROLE_OUT, HAS_MEAN);
    spec[IS_TOP1] = numbers(c, "is_top1", ROLE_OUT, HAS_TOP1);
    spec[NORMALIZER] = numbers(c, "normalizer", ROLE_OUT, HAS_NORMALIZER);
    spec[NORMALIZER].ndim = 2, spec[NORMALIZER].shape[1] = 2;
    for (int i = LOG_PROB; i < FORWARD_TENSORS; i++) {
        spec[i].relative = 32 + 2 * error_of_z(c), spec[i].absolute = 16 + 2 * error_of_z(c), spec[i].magnitude = 1;
    }
    spec[SQUARES].relative *= 2, spec[SQUARES].absolute *= 2;
    spec[IS_TOP1].kind = KIND_BOOL, spec[IS_TOP1].relative = spec[IS_TOP1].absolute = 0;
}

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    describe_operands(c, spec);
    spec[OF_LOG_PROB] = numbers(c, "log_prob", ROLE_IN, HAS_LOG_PROB);
    spec[OF_NORMALIZER] = numbers(c, "normalizer", ROLE_IN, 0);
    spec[OF_NORMALIZER].ndim = 2, spec[OF_NORMALIZER].shape[1] = 2, spec[OF_NORMALIZER].absent = false;
    spec[OF_ENTROPY] = numbers(c, "entropy", ROLE_IN, HAS_ENTROPY);
    spec[OF_SQUARES] = numbers(c, "log_sum_sq_probs", ROLE_IN, HAS_SQUARES);
    spec[D_LOG_PROB] = numbers(c, "d_log_prob", ROLE_IN, HAS_LOG_PROB);
    spec[D_ENTROPY] = numbers(c, "d_entropy", ROLE_IN, HAS_ENTROPY);
    spec[D_LSE] = numbers(c, "d_lse", ROLE_IN, HAS_LSE);
    spec[D_SQUARES] = numbers(c, "d_log_sum_sq_probs", ROLE_IN, HAS_SQUARES);
    spec[D_MEAN] = numbers(c, "d_mean_logits", ROLE_IN, HAS_MEAN);
    spec[DLOGITS] = matrix(c, "dlogits", ROLE_OUT);
    /* As an element of linear_logprob's: what z errs by twice, 32 u of its terms, and a slope of tanh 8. */
    spec[DLOGITS].relative = 1.05;
    spec[DLOGITS].absolute = 32 + 2 * error_of_z(c) + (c->scalar[SOFTCAP] > 0 ? 8 : 0);
}

/* ---- reference -------------------------------------------------------------------------------------------------- */

static struct linear_logprob_ref reference_of(const struct op_case *c, double *const *t) {
    return (struct linear_logprob_ref){
        .rows = c->size[ROWS],
        .vocab = c->size[VOCAB],
        .ignore_index = -100,
        .dtype = LIGER_DTYPE_NONE,
        .scale = op_round(LIGER_F32, c->scalar[SCALE]),
        .softcap = op_round(LIGER_F32, c->scalar[SOFTCAP]),
        .temperature = op_round(LIGER_F32, c->scalar[TEMPERATURE]),
        .target = t[TARGET],
        .logits = t[LOGITS],
    };
}

static struct linear_logprob_ref forward_of(const struct op_case *c, double *const *t) {
    struct linear_logprob_ref ref = reference_of(c, t);
    ref.log_prob = t[LOG_PROB], ref.entropy = t[ENTROPY], ref.lse = t[LSE], ref.log_sum_sq_probs = t[SQUARES];
    ref.mean_logits = t[MEAN], ref.is_top1 = t[IS_TOP1], ref.normalizer = t[NORMALIZER];
    return ref;
}
static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    linear_logprob_reference_forward(forward_of(c, t));
}
static void naive_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    linear_logprob_naive_forward(forward_of(c, t));
}

static struct linear_logprob_ref backward_of(const struct op_case *c, double *const *t) {
    struct linear_logprob_ref ref = reference_of(c, t);
    ref.of_log_prob = t[OF_LOG_PROB], ref.of_entropy = t[OF_ENTROPY], ref.of_squares = t[OF_SQUARES];
    ref.of_normalizer = t[OF_NORMALIZER], ref.dlogits = t[DLOGITS];
    ref.d_log_prob = t[D_LOG_PROB], ref.d_entropy = t[D_ENTROPY], ref.d_lse = t[D_LSE];
    ref.d_log_sum_sq_probs = t[D_SQUARES], ref.d_mean_logits = t[D_MEAN];
    return ref;
}
static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    linear_logprob_reference_backward(backward_of(c, t));
}
static void naive_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    linear_logprob_naive_backward(backward_of(c, t));
}

/* Σ upstream · result. Ignored rows have results of 0. */
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const size_t rows = (size_t)c->size[ROWS];
    double *results = calloc(5 * rows + 1, sizeof *results), total = 0;
    struct linear_logprob_ref ref = reference_of(c, t);
    (void)types;
    if (results == NULL) abort();
    ref.log_prob = results, ref.entropy = results + rows, ref.lse = results + 2 * rows;
    ref.log_sum_sq_probs = results + 3 * rows, ref.mean_logits = results + 4 * rows;
    linear_logprob_reference_forward(ref);
    for (size_t i = 0; i < 5; i++)
        for (size_t r = 0; t[D_LOG_PROB + i] && r < rows; r++) total += t[D_LOG_PROB + i][r] * results[i * rows + r];
    free(results);
    return total;
}

static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    const size_t elements = (size_t)(c->size[ROWS] * c->size[VOCAB]);
    struct linear_logprob_ref ref = backward_of(c, t);
    double *room = calloc(2 * elements + 1, sizeof *room);
    (void)types;
    if (room == NULL) abort();
    ref.dlogits = room, ref.terms = room + elements;
    linear_logprob_reference_backward(ref);
    for (size_t i = 0; i < elements; i++) op_raise(&magnitude[DLOGITS], ref.terms[i]);
    free(room);
}

/* ---- inputs ------------------------------------------------------------------------------------------------------- */

static void prepare_operands(const struct op_case *c, const struct op_types *types, double *const *t) {
    const int64_t vocab = c->size[VOCAB];
    for (int64_t r = 0; r < c->size[ROWS]; r++) {
        double *row = t[LOGITS] + r * vocab;
        for (int64_t j = 0; j < vocab; j++) {
            if (has(c, MASKED) && j % 3 == 1 && j != (int64_t)t[TARGET][r]) row[j] = -INFINITY;
            if (has(c, SHIFTED)) row[j] = op_round(types->t, row[j] + 1024);
        }
        if (has(c, INFINITE)) row[0] = INFINITY;
        if (has(c, POISON) && t[TARGET][r] < 0) row[0] = NAN;
    }
}

static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    prepare_operands(c, types, t);
    struct linear_logprob_ref ref = reference_of(c, t);
    ref.log_prob = t[OF_LOG_PROB], ref.entropy = t[OF_ENTROPY], ref.log_sum_sq_probs = t[OF_SQUARES];
    ref.normalizer = t[OF_NORMALIZER];
    linear_logprob_reference_forward(ref);
    for (int64_t r = 0; has(c, POISON) && r < c->size[ROWS]; r++)
        if (t[TARGET][r] < 0) t[D_LOG_PROB][r] = t[D_ENTROPY][r] = NAN;
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

#define FILL(to, c)                                                                                                    \
    ((to)->ignore_index = -100, (to)->scale = (float)(c)->scalar[SCALE], (to)->softcap = (float)(c)->scalar[SOFTCAP],  \
     (to)->temperature = (float)(c)->scalar[TEMPERATURE])

static void forward_options(const struct op_case *c, void *args) { FILL((liger_logprob_forward_args *)args, c); }
static void backward_options(const struct op_case *c, void *args) { FILL((liger_logprob_backward_args *)args, c); }
OP_DOOR(logprob_forward, forward_options)
OP_DOOR(logprob_backward, backward_options)
OP_DOOR_WORKSPACE(logprob_backward)

/* ---- refusals --------------------------------------------------------------------------------------------------- */

static const struct op_provocation provocations[] = {
    {"temperature 0", OP_SCALAR(TEMPERATURE, 0), LIGER_ERR_ARGUMENT, {": temperature is 0, but must be larger than 0"}},
};

/* The CPU writes nothing; a GPU, which is not waited for, makes NaN of the row's log-probability. */
static const char *target_out_of_range(struct op_run *run) {
    const bool cpu = liger_context_device(run->context) == LIGER_DEVICE_CPU;
    const int64_t rows = run->c.size[ROWS];
    if (rows == 0 || run->t[TARGET][rows - 1] < 0 || run->t[LOG_PROB] == NULL) return NULL;
    run->t[TARGET][rows - 1] = (double)run->c.size[VOCAB];
    const liger_status status = op_run_call(run);
    if (cpu) return status == LIGER_ERR_TARGET ? NULL : op_run_text(run, "the CPU answers %d", (int)status);
    if (status != LIGER_OK) return liger_last_error();
    return isnan(run->t[LOG_PROB][rows - 1]) ? NULL : op_run_text(run, "log_prob is %g", run->t[LOG_PROB][rows - 1]);
}
static const struct op_property forward_properties[] = {{"a target out of range", target_out_of_range}};

static const struct op_gradient gradients[] = {{DLOGITS, LOGITS}};

/* ---- the functions ---------------------------------------------------------------------------------------------- */

#define BY_SHIFTED "logits: a row of their own range is one of differences; see the shifted and masked cases"

const struct op_cases logprob_forward_cases = {
    .name = "logprob_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(forward_cases),
    .prepare = prepare_operands,
    .call = call_logprob_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .no_loss = OP_IS_FORWARD,
    .no_range = {BY_SHIFTED, BY_SHIFTED, BY_SHIFTED, BY_SHIFTED},
    .no_aliases = OP_NO_ALIASES,
    OP_PROVOCATIONS(provocations),
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
};

const struct op_cases logprob_backward_cases = {
    .name = "logprob_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(backward_cases),
    .prepare = prepare_backward,
    .call = call_logprob_backward,
    .workspace = workspace_logprob_backward,
    .reference = reference_backward,
    .naive = naive_backward,
    .no_range = {BY_SHIFTED, BY_SHIFTED, BY_SHIFTED, BY_SHIFTED},
    .magnitudes = magnitudes,
    .loss = loss_backward,
    OP_GRADIENTS(gradients),
    OP_PROVOCATIONS(provocations),
    OP_BENCH(bench),
};
