/* ce_tvd_cases.c - shapes, tolerances, properties and bench points of ce_tvd. */
#define REAL double /* of row_softmax.h */
#include <math.h>
#include <stdlib.h>

#include "liger/ops/ce_tvd/ce_tvd.h"
#include "liger/ops/ce_tvd/ce_tvd_ref.h"
#include "liger/ops/cross_entropy/cross_entropy_cases.h"
#include "tests/harness/device_memory.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"
#include "tests/harness/row_softmax.h"

/* Both functions share one order of tensors: results of forward are statistics and upstreams of backward. */
enum {
    STUDENT,
    TEACHER,
    TARGET,
    STUDENT_MAX,
    STUDENT_LOG_SUM,
    TEACHER_MAX,
    TEACHER_LOG_SUM,
    SIGMA,
    CE,
    TVD,
    FORWARD_TENSORS
};
enum { DCE = CE, DTVD = TVD, DSTUDENT, HAS_SIGNS, BACKWARD_TENSORS };
enum { ROWS, VOCAB };
enum {
    IGNORED = 1, /* every target is ignored */
    POISON = 2,  /* ignored rows hold NaN */
    MASKED = 4,  /* most logits are -inf */
    EQUAL = 8,   /* teacher and student are the same */
    HIGH = 16,   /* all logits of the student shifted by 1e4 */
    NO_CE = 32,
    NO_TVD = 64,    /* nothing comes from above */
    SHIFTED = 128,  /* and the teacher's EQUAL logits by 4, exactly */
    SIGNED = 256,   /* backward gets what a forward call has left */
    UNSIGNED = 512, /* which is nothing */
    TIED = 1024,    /* every third row of the teacher is the student's */
    PART_TIED =
        2048 /* every third row is the student's but for two runs of classes, of which each has one for itself */
};

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

static struct tensor_spec logits(const struct op_case *c, const char *name, enum tensor_role role) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_T,
                                .spread = 2,
                                .ndim = 2,
                                .shape = {c->size[ROWS], c->size[VOCAB]},
                                .gaps = true};
}

static struct tensor_spec of_rows(const struct op_case *c, const char *name, enum tensor_role role) {
    struct tensor_spec spec = {.name = name, .role = role, .kind = KIND_F32, .ndim = 1, .shape = {c->size[ROWS]}};
    if (role == ROLE_OUT) spec.relative = 1.05, spec.absolute = 80;
    return spec;
}

/* A few exponentials, the sum over the row, quotients: about 16 u. The sums of differences are of blocks of 1024 in two chains
 * of four lanes at the least: 128 additions, half a unit each. */
static void describe_shared(const struct op_case *c, struct tensor_spec *spec, enum tensor_role statistics) {
    spec[STUDENT] = logits(c, "student_logits", ROLE_IN);
    spec[STUDENT].offset = c->flags & HIGH ? 1e4 : 0;
    spec[TEACHER] = logits(c, "teacher_logits", ROLE_IN);
    spec[STUDENT].ranges = OP_EVERY_RANGE;
    spec[STUDENT].huge = 0x1p100;
    spec[TARGET] = cross_entropy_target(c->size[ROWS], c->size[VOCAB], c->flags & IGNORED);
    spec[STUDENT_MAX] = of_rows(c, "student_max", statistics);
    spec[STUDENT_LOG_SUM] = of_rows(c, "student_log_sum", statistics);
    spec[TEACHER_MAX] = of_rows(c, "teacher_max", statistics);
    spec[TEACHER_LOG_SUM] = of_rows(c, "teacher_log_sum", statistics);
    spec[SIGMA] = of_rows(c, "sigma", statistics);
}

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    describe_shared(c, spec, ROLE_OUT);
    spec[CE] = of_rows(c, "ce", ROLE_OUT);
    spec[TVD] = of_rows(c, "tvd", ROLE_OUT);
}

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    describe_shared(c, spec, ROLE_IN);
    spec[DCE] = of_rows(c, "dce", ROLE_IN);
    spec[DCE].absent = c->flags & NO_CE;
    spec[DTVD] = of_rows(c, "dtvd", ROLE_IN);
    spec[DTVD].absent = c->flags & NO_TVD;
    spec[DSTUDENT] = logits(c, "dstudent", ROLE_OUT);
    spec[DSTUDENT].relative = 1.05, spec[DSTUDENT].absolute = 2; /* of magnitudes() */
    spec[DSTUDENT].steps = 2;                                    /* p, which the upstreams then multiply */
    spec[HAS_SIGNS] = (struct tensor_spec){
        .name = "has_signs", .kind = KIND_I32, .values = VALUES_ZERO, .ndim = 1, .shape = {c->size[ROWS]}};
    spec[HAS_SIGNS].absent = !(c->flags & UNSIGNED);
}

static struct ce_tvd_ref logits_of(const struct op_case *c, double *const *t) {
    return (struct ce_tvd_ref){.rows = c->size[ROWS],
                               .vocab = c->size[VOCAB],
                               .student = t[STUDENT],
                               .teacher = t[TEACHER],
                               .target = t[TARGET],
                               .student_max = t[STUDENT_MAX],
                               .student_log_sum = t[STUDENT_LOG_SUM],
                               .teacher_max = t[TEACHER_MAX],
                               .teacher_log_sum = t[TEACHER_LOG_SUM],
                               .sigma = t[SIGMA]};
}
static struct ce_tvd_ref forward_of(const struct op_case *c, double *const *t) {
    struct ce_tvd_ref p = logits_of(c, t);
    p.ce = t[CE], p.tvd = t[TVD];
    return p;
}
static struct ce_tvd_ref backward_of(const struct op_case *c, double *const *t) {
    struct ce_tvd_ref p = logits_of(c, t);
    p.dce = t[DCE], p.dtvd = t[DTVD], p.dstudent = t[DSTUDENT];
    return p;
}

/* ---- values ------------------------------------------------------------------------------------------------------- */

/* The sign of p - q is what is right in f32 too: where the two are about the same the teacher gives the element nothing.
 * That changes all q a little, and so is done until no two are left. */
static void keep_apart(int64_t vocab, const double *x, double *t) {
    const double least = 0x1p-10;
    for (int64_t found = 1; found > 0;) {
        const double between = row_log_sum_exp(x, vocab, 1) - row_log_sum_exp(t, vocab, 1);
        found = 0;
        for (int64_t j = 0; j < vocab && vocab > 1; j++)
            if (fabs(x[j] - t[j] - between) < least) t[j] = -INFINITY, found++;
    }
}

/* All exponentials are 1 or 0, so that both sums are the same in whatever order, and so are p and q but in two runs. */
static void tie_in_part(int64_t vocab, int64_t target, double *x, double *y) {
    enum { RUN = 256 };
    const int64_t first = target < 2 * RUN ? 2 * RUN : 0;
    for (int64_t j = 0; j < vocab; j++) x[j] = y[j] = 0;
    for (int64_t j = first; j < first + RUN; j++) x[j] = y[j + RUN] = -INFINITY;
}

static void prepare_logits(const struct op_case *c, double *const *t) {
    const int64_t vocab = c->size[VOCAB];
    for (int64_t r = 0; r < c->size[ROWS]; r++) {
        double *x = t[STUDENT] + r * vocab, *y = t[TEACHER] + r * vocab;
        for (int64_t j = 0; j < vocab; j++) {
            if (c->flags & POISON && t[TARGET][r] < 0) x[j] = y[j] = j % 2 ? NAN : INFINITY;
            if (c->flags & MASKED && j != (int64_t)t[TARGET][r] && j % 3) x[j] = -INFINITY;
            if (c->flags & MASKED && j % 4 == 1) y[j] = -INFINITY;
            if (c->flags & SHIFTED) x[j] = fmax(-8, fmin(round(x[j] * 16) / 16, 8));
            if (c->flags & EQUAL || (c->flags & TIED && r % 3 == 1)) y[j] = x[j] + (c->flags & SHIFTED ? 4 : 0);
        }
        if (c->flags & PART_TIED && r % 3 == 1) tie_in_part(vocab, (int64_t)t[TARGET][r], x, y);
        else if (t[TARGET][r] >= 0 && !(c->flags & EQUAL || (c->flags & TIED && r % 3 == 1))) keep_apart(vocab, x, y);
    }
}
static void prepare_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    prepare_logits(c, t);
}
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    struct ce_tvd_ref p = logits_of(c, t);
    p.ce = p.tvd = calloc((size_t)c->size[ROWS] + 1, sizeof *p.ce); /* not looked at */
    if (p.ce == NULL) abort();
    prepare_logits(c, t);
    ce_tvd_forward_ref(&p);
    free(p.ce);
}

/* ---- calls and reference ------------------------------------------------------------------------------------------ */

static void forward_options(const struct op_case *c, void *args) {
    (void)c;
    ((liger_ce_tvd_forward_args *)args)->ignore_index = -100;
}
static void backward_options(const struct op_case *c, void *args) {
    (void)c;
    ((liger_ce_tvd_backward_args *)args)->ignore_index = -100;
}
OP_DOOR(ce_tvd_forward, forward_options)
OP_DOOR(ce_tvd_backward, backward_options)

/* What forward says of rows, and where it has left something: for good, as a test of a stream that is held may not wait for
 * memory. One call at a time. */
static float *room_for_rows(const liger_context *context, int64_t rows) {
    enum { MOST_ROWS = 2048, VECTORS = 8 };
    static float *rooms[2];
    float **room = &rooms[device_is_host(context)];
    if (*room == NULL) *room = device_allocate(context, MOST_ROWS * VECTORS * sizeof **room);
    if (*room == NULL || rows > MOST_ROWS) abort(); /* a signed case without signs would pass */
    return *room;
}

/* A call of forward before it, if the case is SIGNED and the gradient has memory of its own. */
static liger_status call_backward(liger_context *context, const struct op_call *given, liger_stream stream) {
    struct op_call call = *given;
    const int64_t rows = call.c.size[ROWS];
    const void *const to = call.t[DSTUDENT].data;
    const bool is_signed = call.c.flags & SIGNED && to != call.t[STUDENT].data && to != call.t[TEACHER].data;
    float *room = is_signed && call.args_to == NULL ? room_for_rows(context, rows) : NULL;
    if (room == NULL) return call_ce_tvd_backward(context, given, stream);
    liger_ce_tvd_forward_args args = LIGER_CE_TVD_FORWARD_ARGS_INIT;
    liger_tensor *const found[] = {
        &args.ce,    &args.tvd,      &args.student_max, &args.student_log_sum, &args.teacher_max, &args.teacher_log_sum,
        &args.sigma, &args.has_signs};
    for (int k = 0; k < 8; k++)
        *found[k] = (liger_tensor){room + k * rows, k < 7 ? LIGER_F32 : LIGER_I32, 1, {rows}, {1}};
    args.student_logits = call.t[STUDENT], args.teacher_logits = call.t[TEACHER], args.target = call.t[TARGET];
    args.dstudent = call.t[DSTUDENT], call.t[HAS_SIGNS] = args.has_signs;
    const liger_status status = liger_ce_tvd_forward(context, &args, stream);
    return status == LIGER_OK ? call_ce_tvd_backward(context, &call, stream) : status;
}

OP_EVALUATED_WHOLE(forward, struct ce_tvd_ref, forward_of(c, t), ce_tvd_forward_ref, ce_tvd_forward_naive)

static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    const struct ce_tvd_ref p = backward_of(c, t);
    ce_tvd_backward_ref(&p);
}
static double loss_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    double results[7][64], total = 0;
    struct ce_tvd_ref p = logits_of(c, t);
    p.ce = results[0], p.tvd = results[1];
    p.student_max = results[2], p.student_log_sum = results[3], p.sigma = results[4];
    p.teacher_max = results[5], p.teacher_log_sum = results[6];
    ce_tvd_forward_ref(&p);
    for (int64_t r = 0; r < c->size[ROWS]; r++)
        total += (t[DCE] ? t[DCE][r] * p.ce[r] : 0) + (t[DTVD] ? t[DTVD][r] * p.tvd[r] : 0);
    return total;
}

/* Of what is added up. */
static void forward_magnitudes(const struct op_case *c, const struct op_types *types, double *const *t,
                               double *magnitude) {
    (void)c, (void)types, (void)t;
    magnitude[TVD] = magnitude[SIGMA] = 1;
}

/* The exponent of p is off by roundings of its two differences and of their product with log2 e; p is off by as much of itself. */
static void backward_magnitudes(const struct op_case *c, const struct op_types *types, double *const *t,
                                double *magnitude) {
    (void)types;
    for (int64_t r = 0; r < c->size[ROWS]; r++) {
        const double u = t[DCE] ? fabs(t[DCE][r]) : 0, v = t[DTVD] ? fabs(t[DTVD][r]) : 0;
        const double max = t[STUDENT_MAX][r], log_sum = t[STUDENT_LOG_SUM][r];
        for (int64_t j = 0; j < c->size[VOCAB] && t[TARGET][r] >= 0; j++) {
            const double below = t[STUDENT][r * c->size[VOCAB] + j] - max, p = exp(below - log_sum);
            if (p > 0) op_raise(&magnitude[DSTUDENT], p * (u + v) * (4 + fabs(below) + 2 * log_sum) + u * p);
        }
    }
}

/* ---- refusals ----------------------------------------------------------------------------------------------------- */

/* As forward would have left it for every row, and memory for the rows. */
static void with_signs(struct op_call *call) {
    call->t[HAS_SIGNS] = call->t[SIGMA];
    call->t[HAS_SIGNS].dtype = LIGER_I32;
}
static const struct op_provocation backward_provocations[] = {
    {"signs in the student's logits",
     OP_ON(DSTUDENT, STUDENT),
     LIGER_ERR_LAYOUT,
     {"dstudent", "has_signs"},
     with_signs},
    {"signs in the teacher's logits",
     OP_ON(DSTUDENT, TEACHER),
     LIGER_ERR_LAYOUT,
     {"dstudent", "has_signs"},
     with_signs},
};

/* ---- properties --------------------------------------------------------------------------------------------------- */

static const char *forward_out_of_range(struct op_run *run) {
    return cross_entropy_target_out_of_range(run, TARGET, CE, -1);
}
static const char *backward_out_of_range(struct op_run *run) {
    return cross_entropy_target_out_of_range(run, TARGET, DSTUDENT, -1);
}

/* It is a distance: the same both ways, and 0 of what is equal. */
static const char *is_a_distance(struct op_run *run) {
    double there[64];
    const int64_t rows = run->c.size[ROWS], count = rows * run->c.size[VOCAB];
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    for (int64_t r = 0; r < rows; r++) there[r] = run->t[TVD][r];
    for (int64_t i = 0; i < count; i++) {
        const double x = run->t[STUDENT][i];
        run->t[STUDENT][i] = run->t[TEACHER][i], run->t[TEACHER][i] = x;
    }
    if (op_run_call(run) != LIGER_OK) return "the call the other way failed";
    for (int64_t r = 0; r < rows; r++) {
        if (!(fabs(run->t[TVD][r] - there[r]) <= 64 * 0x1p-24) || !(there[r] >= 0 && there[r] <= 1 + 64 * 0x1p-24))
            return op_run_text(run, "tvd[%lld] is %.9g, and %.9g the other way", (long long)r, there[r],
                               run->t[TVD][r]);
    }
    for (int64_t i = 0; i < count; i++) run->t[TEACHER][i] = run->t[STUDENT][i];
    if (op_run_call(run) != LIGER_OK) return "the call with equal rows failed";
    for (int64_t r = 0; r < rows; r++)
        if (run->t[TVD][r] != 0 || run->t[SIGMA][r] != 0 || run->t[STUDENT_MAX][r] != run->t[TEACHER_MAX][r] ||
            run->t[STUDENT_LOG_SUM][r] != run->t[TEACHER_LOG_SUM][r])
            return op_run_text(run, "of equal rows tvd[%lld] is %g and sigma %g", (long long)r, run->t[TVD][r],
                               run->t[SIGMA][r]);
    return NULL;
}

/* A shift of all logits changes neither, so the gradient has no component along it. */
static const char *rows_sum_to_zero(struct op_run *run) {
    const int64_t vocab = run->c.size[VOCAB];
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    for (int64_t r = 0; r < run->c.size[ROWS]; r++) {
        double sum = 0, all = 0, above = 0;
        for (int64_t j = 0; j < vocab; j++) {
            sum += run->t[DSTUDENT][r * vocab + j], all += fabs(run->t[DSTUDENT][r * vocab + j]);
        }
        above += run->t[DCE] ? fabs(run->t[DCE][r]) : 0;
        above += run->t[DTVD] ? fabs(run->t[DTVD][r]) : 0;
        const double steps = run->types.t == LIGER_F16 ? (double)vocab * 0x1p-25 : 0;
        const double limit =
            all * format_unit(run->types.t) + above * (64 + 4 * run->t[STUDENT_LOG_SUM][r]) * 0x1p-24 + steps;
        if (!(fabs(sum) <= limit))
            return op_run_text(run, "row %lld of dstudent sums to %g, allowed is %g", (long long)r, sum, limit);
    }
    return NULL;
}

static const struct op_property forward_properties[] = {
    {"a target out of range", forward_out_of_range},
    {"tvd is a distance", is_a_distance},
};
static const struct op_property backward_properties[] = {
    {"a target out of range", backward_out_of_range},
    {"rows of dstudent sum to 0", rows_sum_to_zero},
};

/* ---- cases -------------------------------------------------------------------------------------------------------- */

/* Vocabularies: 1, around the lanes of a vector, primes, powers of two, more than one block of the CPU; on CUDA a block of each
 * size, clusters of each kind of row, and what no cluster holds. */
/* clang-format off */
#define SHAPES                                                                                                         \
    {"5x33",                     {5, 33}},                                                                             \
    {"3x1",                      {3, 1}},                                                                              \
    {"4x2",                      {4, 2}},                                                                              \
    {"7x15",                     {7, 15}},                                                                             \
    {"7x16",                     {7, 16}},                                                                             \
    {"7x17",                     {7, 17}},                                                                             \
    {"37x1000",                  {37, 1000}},                                                                          \
    {"9x4096",                   {9, 4096}},                                                                           \
    {"9x5003",                   {9, 5003}},                                                                           \
    {"5x8200",                   {5, 8200}},                                                                           \
    {"6x32000",                  {6, 32000}},                                                                          \
    {"3x128256",                 {3, 128256}, .large = true},                                                          \
    {"3x151936",                 {3, 151936}, .large = true},                                                          \
    {"3x262144",                 {3, 262144}, .large = true},                                                          \
    {"3x300001",                 {3, 300001}, .large = true},                                                          \
    {"no rows",                  {0, 40},     .edge = true},                                                           \
    {"1200x1000",                {1200, 1000}, .large = true},                                                         \
    {"300x8200",                 {300, 8200},  .large = true},                                                         \
    {"150x32000",                {150, 32000}, .large = true},                                                         \
    {"40x128256",                {40, 128256}, .large = true, .dtypes = 1u << LIGER_BF16},                             \
    {"40x151936",                {40, 151936}, .large = true, .dtypes = 1u << LIGER_BF16},                             \
    {"all ignored",              {5, 40},     .flags = IGNORED, .edge = true},                                         \
    {"NaN in ignored rows",      {9, 1000},   .flags = POISON, .edge = true},                                          \
    {"masked",                   {8, 1000},   .flags = MASKED, .edge = true},                                          \
    {"equal",                    {8, 1000},   .flags = EQUAL, .edge = true},                                           \
    {"equal but for a constant", {8, 1000},   .flags = EQUAL | SHIFTED, .edge = true},                                 \
    {"equal, odd",               {8, 1001},   .flags = EQUAL, .edge = true},                                           \
    {"high",                     {8, 1000},   .flags = HIGH, .edge = true, .dtypes = 1u << LIGER_F32 | 1u << LIGER_BF16}
/* clang-format on */

static const struct op_case forward_cases[] = {SHAPES};
static const struct op_case backward_cases[] = {
    SHAPES,
    {.label = "7x24 no dce", .size = {7, 24}, .flags = NO_CE},
    {.label = "7x24 no dtvd", .size = {7, 24}, .flags = NO_TVD},
    {.label = "7x24 nothing from above", .size = {7, 24}, .flags = NO_CE | NO_TVD, .edge = true},
    {.label = "7x24 nothing left", .size = {7, 24}, .flags = UNSIGNED, .edge = true},
    {.label = "7x24 signed", .size = {7, 24}, .flags = SIGNED},
    {.label = "7x9000 signed", .size = {7, 9000}, .flags = SIGNED | TIED},
    {.label = "7x9000 signed, tied in part", .size = {7, 9000}, .flags = SIGNED | PART_TIED},
    {.label = "5x33000 signed", .size = {5, 33000}, .flags = SIGNED},
    {.label = "4x9000 signed, no dce", .size = {4, 9000}, .flags = SIGNED | NO_CE},
    {.label = "4x9000 signed, no dtvd", .size = {4, 9000}, .flags = SIGNED | NO_TVD},
    {.label = "5x9000 signed, masked", .size = {5, 9000}, .flags = SIGNED | MASKED, .edge = true},
    {.label = "9x9000 signed, poison", .size = {9, 9000}, .flags = SIGNED | POISON, .edge = true},
    {.label = "4x300008 signed", .size = {4, 300008}, .flags = SIGNED | TIED, .large = true},
    {.label = "600x9000 signed", .size = {600, 9000}, .flags = SIGNED | TIED, .large = true},
    {.label = "40x128256 signed",
     .size = {40, 128256},
     .flags = SIGNED | TIED,
     .large = true,
     .dtypes = 1u << LIGER_BF16},
    {.label = "40x151936 signed",
     .size = {40, 151936},
     .flags = SIGNED | TIED,
     .large = true,
     .dtypes = 1u << LIGER_BF16},
};

static const struct op_gradient gradients[] = {{DSTUDENT, STUDENT}};

static const struct op_case bench[] = {
    {.label = "1024x32000", .size = {1024, 32000}},
    {.label = "4096x128256", .size = {4096, 128256}, .dtypes = 1u << LIGER_BF16, .large = true},
};

const struct op_cases ce_tvd_forward_cases = {
    .name = "ce_tvd_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(forward_cases),
    .prepare = prepare_forward,
    .call = call_ce_tvd_forward,
    .reference = reference_forward,
    .naive = naive_forward,
    .magnitudes = forward_magnitudes,
    .no_loss = OP_IS_FORWARD,
    .no_aliases = OP_NO_ALIASES,
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
};

const struct op_cases ce_tvd_backward_cases = {
    .name = "ce_tvd_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(backward_cases),
    .prepare = prepare_backward,
    .call = call_backward,
    .reference = reference_backward,
    .no_naive = OP_NO_SUMS,
    .magnitudes = backward_magnitudes,
    .loss = loss_backward,
    OP_GRADIENTS(gradients),
    OP_PROVOCATIONS(backward_provocations),
    OP_PROPERTIES(backward_properties),
    OP_BENCH(bench),
};
