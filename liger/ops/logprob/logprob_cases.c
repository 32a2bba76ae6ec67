/* logprob_cases.c - shapes, tolerances and bench points of log-probabilities of logits that are there, and what cases on a head
 * share with them. */
#include "liger/ops/logprob/logprob_cases.h"

#include <math.h>
#include <stdlib.h>

#include "liger/core/context_state.h"
#include "liger/ops/logprob/logprob.h"
#include "tests/harness/linear_head_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { ROWS, VOCAB };
enum { LOGITS, TARGET, OPERANDS };
enum { LOGPROB_RESULTS(OPERANDS), FORWARD_TENSORS };
enum { LOGPROB_UPSTREAMS(OPERANDS), DLOGITS, BACKWARD_TENSORS };

/* ---- what is shared --------------------------------------------------------------------------------------------- */

struct tensor_spec logprob_target(const struct op_case *c, int64_t rows, int64_t vocab) {
    return (struct tensor_spec){.name = "target",
                                .kind = KIND_INDEX,
                                .values = VALUES_TARGET,
                                .spread = (double)vocab,
                                .offset = -100,
                                .ignore_every = has(c, COUNTED)   ? 0
                                                : has(c, IGNORED) ? 1
                                                                  : 3,
                                .ndim = 1,
                                .shape = {rows}};
}

static struct tensor_spec of_rows(const char *name, enum tensor_role role, int64_t rows, bool present) {
    return (struct tensor_spec){
        .name = name, .role = role, .kind = KIND_F32, .ndim = 1, .shape = {rows}, .absent = !present};
}
struct tensor_spec logprob_by_rows(const char *name, enum tensor_role role, int64_t rows, int64_t each, bool present) {
    struct tensor_spec spec = of_rows(name, role, rows, present);
    spec.ndim = 2, spec.shape[1] = each;
    return spec;
}

void logprob_describe_results(const struct op_case *c, int64_t rows, struct tensor_spec *first) {
    struct tensor_spec *spec = first - LOG_PROB;
    spec[LOG_PROB] = of_rows("log_prob", ROLE_OUT, rows, has(c, HAS_LOG_PROB));
    spec[ENTROPY] = of_rows("entropy", ROLE_OUT, rows, has(c, HAS_ENTROPY));
    spec[LSE] = of_rows("lse", ROLE_OUT, rows, has(c, HAS_LSE));
    spec[SQUARES] = of_rows("log_sum_sq_probs", ROLE_OUT, rows, has(c, HAS_SQUARES));
    spec[MEAN] = of_rows("mean_logits", ROLE_OUT, rows, has(c, HAS_MEAN));
    spec[IS_TOP1] = of_rows("is_top1", ROLE_OUT, rows, has(c, HAS_TOP1));
    spec[IS_TOP1].kind = KIND_BOOL;
    spec[NORMALIZER] = logprob_by_rows("normalizer", ROLE_OUT, rows, 2, has(c, HAS_NORMALIZER));
}

void logprob_describe_upstreams(const struct op_case *c, int64_t rows, struct tensor_spec *first) {
    struct tensor_spec *spec = first - OF_LOG_PROB;
    spec[OF_LOG_PROB] = of_rows("log_prob", ROLE_IN, rows, has(c, HAS_LOG_PROB));
    spec[OF_NORMALIZER] = logprob_by_rows("normalizer", ROLE_IN, rows, 2, true);
    spec[OF_ENTROPY] = of_rows("entropy", ROLE_IN, rows, has(c, HAS_ENTROPY));
    spec[OF_SQUARES] = of_rows("log_sum_sq_probs", ROLE_IN, rows, has(c, HAS_SQUARES));
    spec[D_LOG_PROB] = of_rows("d_log_prob", ROLE_IN, rows, has(c, HAS_LOG_PROB));
    spec[D_ENTROPY] = of_rows("d_entropy", ROLE_IN, rows, has(c, HAS_ENTROPY));
    spec[D_LSE] = of_rows("d_lse", ROLE_IN, rows, has(c, HAS_LSE));
    spec[D_SQUARES] = of_rows("d_log_sum_sq_probs", ROLE_IN, rows, has(c, HAS_SQUARES));
    spec[D_MEAN] = of_rows("d_mean_logits", ROLE_IN, rows, has(c, HAS_MEAN));
}

/* Nothing if it is the logit; two roundings with a factor; of a soft cap those, tanh's 4 u and one more. */
double logprob_error_of_z(const struct op_case *c) {
    if (c->scalar[SOFTCAP] > 0) return 7 * 8;
    return c->scalar[SCALE] == c->scalar[TEMPERATURE] ? 0 : 2 * 8;
}

/* A sum of a few products with p, which errs by what z errs by twice, by 4 u of an exponential and by roundings of the statistics,
 * each of them about 8: 32 u. A slope of tanh has 8 u and what its argument errs by. */
double logprob_error_of_gradient(const struct op_case *c, double error_of_z) {
    return 32 + 2 * error_of_z + (c->scalar[SOFTCAP] > 0 ? 8 : 0);
}

struct logprob_ref logprob_ref_of(const struct op_case *c, int64_t rows, int64_t vocab) {
    return (struct logprob_ref){
        .rows = rows,
        .vocab = vocab,
        .ignore_index = -100,
        .dtype = LIGER_DTYPE_NONE,
        .scale = op_round(LIGER_F32, c->scalar[SCALE]),
        .softcap = op_round(LIGER_F32, c->scalar[SOFTCAP]),
        .temperature = op_round(LIGER_F32, c->scalar[TEMPERATURE]),
    };
}

void logprob_ref_results(struct logprob_ref *ref, double *const *first) {
    double *const *t = first - LOG_PROB;
    ref->log_prob = t[LOG_PROB], ref->entropy = t[ENTROPY], ref->lse = t[LSE], ref->log_sum_sq_probs = t[SQUARES];
    ref->mean_logits = t[MEAN], ref->is_top1 = t[IS_TOP1], ref->normalizer = t[NORMALIZER];
}

void logprob_ref_upstreams(struct logprob_ref *ref, double *const *first) {
    double *const *t = first - OF_LOG_PROB;
    ref->of_log_prob = t[OF_LOG_PROB], ref->of_entropy = t[OF_ENTROPY], ref->of_squares = t[OF_SQUARES];
    ref->of_normalizer = t[OF_NORMALIZER];
    ref->d_log_prob = t[D_LOG_PROB], ref->d_entropy = t[D_ENTROPY], ref->d_lse = t[D_LSE];
    ref->d_log_sum_sq_probs = t[D_SQUARES], ref->d_mean_logits = t[D_MEAN];
}

void logprob_ref_statistics(struct logprob_ref *ref, double *const *first_upstream) {
    double *const *t = first_upstream - OF_LOG_PROB;
    ref->log_prob = t[OF_LOG_PROB], ref->normalizer = t[OF_NORMALIZER];
    ref->entropy = t[OF_ENTROPY], ref->log_sum_sq_probs = t[OF_SQUARES];
}

double logprob_ref_loss(struct logprob_ref ref) {
    double **const result[] = {&ref.log_prob,         &ref.entropy,     &ref.lse,
                               &ref.log_sum_sq_probs, &ref.mean_logits, &ref.selected};
    const double *const upstream[] = {ref.d_log_prob,         ref.d_entropy,     ref.d_lse,
                                      ref.d_log_sum_sq_probs, ref.d_mean_logits, ref.d_selected};
    double total = 0;
    for (int i = 0; i < OP_COUNT(result); i++)
        *result[i] = upstream[i] ? head_doubles(ref.rows * (i < 5 ? 1 : ref.ids)) : NULL;
    logprob_reference_forward(ref);
    for (int i = 0; i < OP_COUNT(result); i++) {
        for (int64_t k = 0; upstream[i] && k < ref.rows * (i < 5 ? 1 : ref.ids); k++)
            total += upstream[i][k] * (*result[i])[k];
        free(*result[i]);
    }
    return total;
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

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

static struct tensor_spec matrix(const struct op_case *c, const char *name, enum tensor_role role) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_T,
                                .spread = 1.5,
                                .ndim = 2,
                                .shape = {c->size[ROWS], c->size[VOCAB]},
                                .gaps = true};
}

static void describe_operands(const struct op_case *c, struct tensor_spec *spec) {
    spec[LOGITS] = matrix(c, "logits", ROLE_IN);
    spec[TARGET] = logprob_target(c, c->size[ROWS], c->size[VOCAB]);
}

/* An exponential takes 4 u, the sum over a row some 16 more, logarithm and differences the rest: 32 u. Where the most probable
 * class is not the target, a logarithm of about 1 has an error of some u that nothing makes small. */
static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    const double error = logprob_error_of_z(c);
    describe_operands(c, spec);
    logprob_describe_results(c, c->size[ROWS], &spec[LOG_PROB]);
    for (int i = LOG_PROB; i < FORWARD_TENSORS; i++)
        if (i != IS_TOP1) spec[i].relative = 32 + 2 * error, spec[i].absolute = 16 + 2 * error, spec[i].magnitude = 1;
    spec[SQUARES].relative *= 2, spec[SQUARES].absolute *= 2;
}

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    describe_operands(c, spec);
    logprob_describe_upstreams(c, c->size[ROWS], &spec[OF_LOG_PROB]);
    spec[DLOGITS] = matrix(c, "dlogits", ROLE_OUT);
    spec[DLOGITS].relative = 1.05;
    spec[DLOGITS].absolute = logprob_error_of_gradient(c, logprob_error_of_z(c));
}

/* ---- reference -------------------------------------------------------------------------------------------------- */

static struct logprob_ref reference_of(const struct op_case *c, double *const *t) {
    struct logprob_ref ref = logprob_ref_of(c, c->size[ROWS], c->size[VOCAB]);
    ref.target = t[TARGET], ref.logits = t[LOGITS];
    return ref;
}

static struct logprob_ref forward_of(const struct op_case *c, double *const *t) {
    struct logprob_ref ref = reference_of(c, t);
    logprob_ref_results(&ref, t + LOG_PROB);
    return ref;
}
static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    logprob_reference_forward(forward_of(c, t));
}
static void naive_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    logprob_naive_forward(forward_of(c, t));
}

static struct logprob_ref backward_of(const struct op_case *c, double *const *t) {
    struct logprob_ref ref = reference_of(c, t);
    logprob_ref_upstreams(&ref, t + OF_LOG_PROB);
    ref.dlogits = t[DLOGITS];
    return ref;
}
static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    logprob_reference_backward(backward_of(c, t));
}
static void naive_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    logprob_naive_backward(backward_of(c, t));
}
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    return logprob_ref_loss(backward_of(c, t));
}

static void magnitudes(const struct op_case *c, const struct op_types *types, double *const *t, double *magnitude) {
    const int64_t elements = c->size[ROWS] * c->size[VOCAB];
    struct logprob_ref ref = backward_of(c, t);
    (void)types;
    ref.dlogits = head_doubles(elements), ref.terms = head_doubles(elements);
    logprob_reference_backward(ref);
    for (int64_t i = 0; i < elements; i++) op_raise(&magnitude[DLOGITS], ref.terms[i]);
    free(ref.dlogits);
    free(ref.terms);
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
    struct logprob_ref ref = reference_of(c, t);
    logprob_ref_statistics(&ref, t + OF_LOG_PROB);
    logprob_reference_forward(ref);
    for (int64_t r = 0; has(c, POISON) && r < c->size[ROWS]; r++)
        if (t[TARGET][r] < 0) t[D_LOG_PROB][r] = t[D_ENTROPY][r] = NAN;
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static void forward_options(const struct op_case *c, void *args) {
    LOGPROB_OPTIONS((liger_logprob_forward_args *)args, c);
}
static void backward_options(const struct op_case *c, void *args) {
    LOGPROB_OPTIONS((liger_logprob_backward_args *)args, c);
}
OP_DOOR(logprob_forward, forward_options)
OP_DOOR(logprob_backward, backward_options)
OP_DOOR_WORKSPACE(logprob_backward)

/* ---- properties ------------------------------------------------------------------------------------------------- */

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
    OP_BENCH(bench),
};
