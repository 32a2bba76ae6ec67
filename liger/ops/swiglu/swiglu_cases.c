/* swiglu_cases.c - shapes, tolerances, properties and bench points of SwiGLU. */
#include "liger/ops/swiglu/swiglu.h"
#include "liger/ops/swiglu/swiglu_ref.h"
#include "tests/harness/gated_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { GATE = GATED_GATE, UP, Y, FORWARD_TENSORS };
enum { DY = GATED_DY, DGATE, DUP, BACKWARD_TENSORS };
enum { ACTIVATION = ROWS_SIZES };
enum { GATE_MULTIPLIER, DOWN_MULTIPLIER };

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    gated_describe_forward(c, spec);
    /* A silu that lies between two values of T may be rounded to the other one: 2u. Then the roundings of the product
     * (u), and of the second product (the first one may be off by 4u, and u). f32: exponential, sum, quotient: 8u. */
    spec[Y].relative = c->scalar[DOWN_MULTIPLIER] != 1 ? 5.05 : 3.05;
    spec[Y].absolute = 8;
    spec[Y].steps = 25; /* two roundings of silu, times |up| <= 6, and of the product, times |down_multiplier| <= 2 */
}

static void forward_options(const struct op_case *c, void *args) {
    liger_swiglu_forward_args *to = args;
    to->gate_multiplier = (float)c->scalar[GATE_MULTIPLIER];
    to->down_multiplier = (float)c->scalar[DOWN_MULTIPLIER];
    to->activation_dtype = (int32_t)c->size[ACTIVATION];
}
OP_DOOR(swiglu_forward, forward_options)

static void reference_forward(const struct op_case *c, const struct op_types *types, double *const *t) {
    const liger_dtype activation = c->size[ACTIVATION] ? (liger_dtype)c->size[ACTIVATION] : types->t;
    swiglu_forward_ref(elements_of(c), types->t, activation, c->scalar[GATE_MULTIPLIER], c->scalar[DOWN_MULTIPLIER],
                       t[GATE], t[UP], t[Y]);
}

/* Multipliers are exact in f32, so that f32 and double mean the same function. */
static const struct op_case cases[] = {
    GATED_CASES(.scalar = {1, 1}),
    {.label = "multipliers 5x130", .size = {0, 5, 130}, .scalar = {0.75, 1.25}},
    {.label = "negative multipliers", .size = {0, 4, 24}, .scalar = {-0.5, -2}},
    {.label = "silu kept in f32", .size = {0, 7, 96, LIGER_F32}, .scalar = {1, 1}},
    {.label = "silu rounded to f16", .size = {0, 7, 97, LIGER_F16}, .scalar = {1, 1.25}},
    {.label = "silu rounded to bf16", .size = {0, 7, 97, LIGER_BF16}, .scalar = {0.75, 1}},
    {.label = "no dgate", .size = {0, 3, 40}, .scalar = {1, 1.25}, .flags = GATED_NO_DGATE},
    {.label = "no dup", .size = {0, 3, 40}, .scalar = {1, 1.25}, .flags = GATED_NO_DUP},
    {.label = "saturated, multipliers",
     .size = {0, 5, 61},
     .scalar = {0.75, 0.5},
     .flags = GATED_EXTREME,
     .edge = true},
};

static const char *rounds_like_operators(struct op_run *run) {
    const int64_t activation = run->c.size[ACTIVATION];
    if (activation) run->c.scalar[DOWN_MULTIPLIER] = 1;
    if (activation) return gated_activation_is_rounded(run, (liger_dtype)activation);
    return gated_rounds_like_operators(run, &run->c.scalar[DOWN_MULTIPLIER]);
}

static const struct op_property forward_properties[] = {
    {"halves of one buffer", gated_forward_of_halves},
    {"rounds like the separate operators", rounds_like_operators},
};

static const struct op_case bench[] = {GATED_BENCH(.scalar = {1, 1})};

const struct op_cases swiglu_forward_cases = {
    .name = "swiglu_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .prepare = gated_prepare,
    .call = call_swiglu_forward,
    .reference = reference_forward,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    gated_describe_backward(c, spec);
    spec[DGATE].relative = 1.05;
    spec[DGATE].absolute = 24; /* f32 steps: sigmoid 6u, products 6u; 1 - s loses up to 17u·s before s is 1 */
    spec[DUP].relative = 1.05;
    spec[DUP].absolute = 8;
    spec[DGATE].steps = spec[DUP].steps = 25; /* two roundings of silu, times |dy · down_multiplier| <= 12 */
}

static void backward_options(const struct op_case *c, void *args) {
    liger_swiglu_backward_args *to = args;
    to->gate_multiplier = (float)c->scalar[GATE_MULTIPLIER];
    to->down_multiplier = (float)c->scalar[DOWN_MULTIPLIER];
}
OP_DOOR(swiglu_backward, backward_options)

static void reference_backward(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)types;
    swiglu_backward_ref(elements_of(c), c->scalar[GATE_MULTIPLIER], c->scalar[DOWN_MULTIPLIER], t[DY], t[GATE], t[UP],
                        t[DGATE], t[DUP]);
}

static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    double sum = 0;
    (void)types;
    for (int64_t i = 0; i < elements_of(c); i++) {
        double y;
        swiglu_forward_ref(1, LIGER_DTYPE_NONE, LIGER_DTYPE_NONE, c->scalar[GATE_MULTIPLIER],
                           c->scalar[DOWN_MULTIPLIER], t[GATE] + i, t[UP] + i, &y);
        sum += t[DY][i] * y;
    }
    return sum;
}

static const struct op_gradient gradients[] = {{DGATE, GATE}, {DUP, UP}};

static const struct op_property backward_properties[] = {{"halves of one buffer, in place", gated_backward_of_halves}};

const struct op_cases swiglu_backward_cases = {
    .name = "swiglu_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = gated_prepare,
    .call = call_swiglu_backward,
    .reference = reference_backward,
    .no_naive = OP_NO_SUMS,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_PROPERTIES(backward_properties),
    OP_BENCH(bench),
};
