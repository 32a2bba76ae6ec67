/* geglu_cases.c - shapes, tolerances, properties and bench points of GeGLU. */
#include "liger/ops/geglu/geglu.h"
#include "liger/ops/geglu/geglu_ref.h"
#include "tests/harness/gated_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

#include <math.h>

enum { GATE = GATED_GATE, UP, Y, FORWARD_TENSORS };
enum { DY = GATED_DY, DGATE, DUP, BACKWARD_TENSORS };
enum { ACTIVATION = ROWS_SIZES };
enum { COARSER }; /* scalar: how many times gelu's dtype is coarser than T, if it is */

static const struct op_case cases[] = {
    GATED_CASES(),
    {.label = "5x130", .size = {0, 5, 130}},
    {.label = "gelu kept in f32", .size = {0, 7, 96, LIGER_F32}},
    {.label = "gelu in f16", .size = {0, 7, 97, LIGER_F16}, .dtypes = 1u << LIGER_F16 | 1u << LIGER_BF16},
    {.label = "gelu in f16", .size = {0, 7, 97, LIGER_F16}, .scalar = {0x1p13}, .dtypes = 1u << LIGER_F32},
    {.label = "gelu in bf16", .size = {0, 7, 97, LIGER_BF16}, .dtypes = 1u << LIGER_BF16},
    {.label = "gelu in bf16", .size = {0, 7, 97, LIGER_BF16}, .scalar = {0x1p3}, .dtypes = 1u << LIGER_F16},
    {.label = "gelu in bf16", .size = {0, 7, 97, LIGER_BF16}, .scalar = {0x1p16}, .dtypes = 1u << LIGER_F32},
    {.label = "no dgate", .size = {0, 3, 40}, .flags = GATED_NO_DGATE},
    {.label = "no dup", .size = {0, 3, 40}, .flags = GATED_NO_DUP},
};

static const struct op_case bench[] = {GATED_BENCH()};

/* Gates below `least` that are not extremes become `least`: further out 1 + tanh is 0 in f32 before it is in double, and times
 * an infinite factor that is NaN here and infinite there. */
static void bound_gates(const struct op_case *c, double *gate, double least) {
    for (int64_t i = 0; i < elements_of(c) && !(c->flags & GATED_EXTREME); i++)
        if (gate[i] < least && gate[i] > -20) gate[i] = least;
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    gated_describe_forward(c, spec);
    /* A gelu that lies between two values of its dtype may be rounded to the other one: 2u of it, where the sum in it cancels
     * in one of a few hundred. Then the rounding of the product. */
    spec[Y].relative = 1.05 + 2 * fmax(1, c->scalar[COARSER]);
    spec[Y].absolute = 16; /* f32: ½·a·(1 + tanh) keeps the error of tanh, 3u, also where the sum cancels */
    spec[Y].steps = 25;    /* two roundings of gelu, times |up| <= 6 */
}

/* Forward takes the sum as it stands. */
static void prepare_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    gated_prepare(c, types, t);
    bound_gates(c, t[GATE], -5);
}

static void forward_options(const struct op_case *c, void *args) {
    ((liger_geglu_forward_args *)args)->activation_dtype = (int32_t)c->size[ACTIVATION];
}
OP_DOOR(geglu_forward, forward_options)

static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const liger_dtype activation = c->size[ACTIVATION] ? (liger_dtype)c->size[ACTIVATION] : types->t;
    geglu_forward_ref(elements_of(c), activation, t[GATE], t[UP], t[Y]);
}

static const char *rounds_like_operators(struct op_run *run) {
    const int64_t activation = run->c.size[ACTIVATION];
    if (activation) return gated_activation_is_rounded(run, (liger_dtype)activation);
    return gated_rounds_like_operators(run, NULL);
}

static const struct op_property forward_properties[] = {
    {"halves of one buffer", gated_forward_of_halves},
    {"rounds like the separate operators", rounds_like_operators},
};

const struct op_cases geglu_forward_cases = {
    .name = "geglu_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .prepare = prepare_forward,
    .call = call_geglu_forward,
    .reference = reference_forward,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    gated_describe_backward(c, spec);
    spec[UP].specials = spec[DY].specials = false; /* inf times a slope of 1e-39, which is 0 in f32, would be NaN */
    spec[DGATE].relative = 2.05;                   /* of dy · up, and at the store */
    spec[DGATE].absolute = 24;                     /* f32: exponential, sum, quotient, products, as SwiGLU's */
    spec[DUP].relative = 3.05;
    spec[DUP].absolute = 16;
    spec[DGATE].steps = spec[DUP].steps = 25; /* two roundings of gelu, times |dy| <= 6 */
}

/* Backward takes it from e^(-2|u|). */
static void prepare_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    gated_prepare(c, types, t);
    bound_gates(c, t[GATE], -9.5);
}

OP_DOOR(geglu_backward, NULL)

static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    geglu_backward_ref(elements_of(c), types->t, t[DY], t[GATE], t[UP], t[DGATE], t[DUP]);
}

static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    double sum = 0;
    (void)types;
    for (int64_t i = 0; i < elements_of(c); i++) {
        double y;
        geglu_forward_ref(1, LIGER_DTYPE_NONE, t[GATE] + i, t[UP] + i, &y);
        sum += t[DY][i] * y;
    }
    return sum;
}

/* gelu' of -9 to -3, where 1 + tanh is all but 0: to a part of itself, not of the largest one. */
static const char *slope_of_far_gates(struct op_run *run) {
    const int64_t count = run->count[GATE];
    if (run->types.t != LIGER_F32 || run->t[DGATE] == NULL)
        return op_run_not_applicable(run, "slope of far gates: 16 bits hide it, or dgate is absent");
    for (int64_t i = 0; i < count; i++) {
        run->t[GATE][i] = (float)(-3 - 6 * (double)i / (double)count);
        run->t[UP][i] = run->t[DY][i] = 1;
    }
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    for (int64_t i = 0; i < count; i++) {
        double expected;
        const double got = run->t[DGATE][i];
        geglu_backward_ref(1, LIGER_DTYPE_NONE, &run->t[DY][i], &run->t[GATE][i], &run->t[UP][i], &expected, NULL);
        if (!(fabs(got - expected) <= 0x1p-14 * fabs(expected)))
            return op_run_text(run, "gelu'(%.9g) is %.9g, but must be %.9g", run->t[GATE][i], got, expected);
    }
    return NULL;
}

static const struct op_gradient gradients[] = {{DGATE, GATE}, {DUP, UP}};
static const struct op_property backward_properties[] = {{"halves of one buffer, in place", gated_backward_of_halves},
                                                         {"slope of far gates", slope_of_far_gates}};

const struct op_cases geglu_backward_cases = {
    .name = "geglu_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare_backward,
    .call = call_geglu_backward,
    .reference = reference_backward,
    .no_naive = OP_NO_SUMS,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_PROPERTIES(backward_properties),
    OP_BENCH(bench),
};
