/* swiglu_cases.c - shapes, tolerances, properties and bench points of SwiGLU. */
#include <math.h>
#include <stdlib.h>

#include "liger/ops/swiglu/swiglu.h"
#include "liger/ops/swiglu/swiglu_ref.h"
#include "tests/harness/device_memory.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/op_cases.h"
#include "tests/harness/op_door.h"
#include "tests/harness/op_run.h"

enum { GATE, UP, Y, FORWARD_TENSORS };
enum { DY = Y, DGATE, DUP, BACKWARD_TENSORS };
enum { NDIM, OUTER, ROWS, COLS, ACTIVATION }; /* the shape is the last NDIM of OUTER, ROWS, COLS */
enum { GATE_MULTIPLIER, DOWN_MULTIPLIER };
enum {
    NO_DGATE = 1,
    NO_DUP = 2,
    EXTREME = 4 /* the gate goes through the saturated and the non-finite */
};

static int64_t count_of(const struct op_case *c) {
    int64_t count = 1;
    for (int d = 0; d < c->size[NDIM]; d++) count *= c->size[COLS - d];
    return count;
}

static struct tensor_spec twin(const struct op_case *c, const char *name, enum tensor_role role) {
    struct tensor_spec spec = {.name = name,
                               .role = role,
                               .kind = KIND_T,
                               .values = VALUES_NORMAL,
                               .ndim = (int)c->size[NDIM],
                               .gaps = true,
                               .specials = role == ROLE_IN};
    for (int d = 0; d < spec.ndim; d++) spec.shape[d] = c->size[COLS - spec.ndim + 1 + d];
    return spec;
}

static void describe_inputs(const struct op_case *c, struct tensor_spec *spec) {
    spec[GATE] = twin(c, "gate", ROLE_IN);
    spec[GATE].spread = 3;
    spec[GATE].ranges = OP_EVERY_RANGE;
    spec[UP] = twin(c, "up", ROLE_IN);
    spec[UP].ranges = 1u << RANGE_HUGE | 1u << RANGE_OFFSET;
    spec[UP].huge = 0x1p30; /* f32: gate · up may overflow, dy · up may not */
}

static void prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    static const double extremes[] = {-1e4, 1e4, -INFINITY, INFINITY, NAN, -90, 90, -17, 17, 0, -0.0, 1e-3};
    (void)types;
    if (!(c->flags & EXTREME)) return;
    for (int64_t i = 0; i < count_of(c); i++) t[GATE][i] = extremes[i % OP_COUNT(extremes)];
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    describe_inputs(c, spec);
    spec[Y] = twin(c, "y", ROLE_OUT);
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
    swiglu_forward_ref(count_of(c), types->t, activation, c->scalar[GATE_MULTIPLIER], c->scalar[DOWN_MULTIPLIER],
                       t[GATE], t[UP], t[Y]);
}

/* Multipliers are exact in f32, so that f32 and double mean the same function. */
static const struct op_case cases[] = {
    {.label = "3x7x37", .size = {3, 3, 7, 37}, .scalar = {1, 1}},
    {.label = "one element", .size = {1, 0, 0, 1}, .scalar = {1, 1}},
    {.label = "multipliers 5x130", .size = {2, 0, 5, 130}, .scalar = {0.75, 1.25}},
    {.label = "negative multipliers", .size = {2, 0, 4, 24}, .scalar = {-0.5, -2}},
    {.label = "long row", .size = {1, 0, 0, 40007}, .scalar = {1, 1}},
    {.label = "aligned 6x2x512", .size = {3, 6, 2, 512}, .scalar = {1, 1}},
    {.label = "many narrow rows", .size = {2, 0, 1031, 8}, .scalar = {1, 1}},
    {.label = "columns of one", .size = {3, 4, 9, 1}, .scalar = {1, 1}},
    {.label = "silu kept in f32", .size = {2, 0, 7, 96, LIGER_F32}, .scalar = {1, 1}},
    {.label = "silu rounded to f16", .size = {2, 0, 7, 97, LIGER_F16}, .scalar = {1, 1.25}},
    {.label = "silu rounded to bf16", .size = {2, 0, 7, 97, LIGER_BF16}, .scalar = {0.75, 1}},
    {.label = "no dgate", .size = {2, 0, 3, 40}, .scalar = {1, 1.25}, .flags = NO_DGATE},
    {.label = "no dup", .size = {2, 0, 3, 40}, .scalar = {1, 1.25}, .flags = NO_DUP},
    {.label = "nothing asked for", .size = {2, 0, 3, 40}, .scalar = {1, 1}, .flags = NO_DGATE | NO_DUP, .edge = true},
    {.label = "no rows", .size = {2, 0, 0, 40}, .scalar = {1, 1}, .edge = true},
    {.label = "no columns", .size = {3, 2, 3, 0}, .scalar = {1, 1}, .edge = true},
    {.label = "saturated", .size = {2, 0, 5, 61}, .scalar = {1, 1}, .flags = EXTREME, .edge = true},
    {.label = "saturated, multipliers", .size = {2, 0, 5, 61}, .scalar = {0.75, 0.5}, .flags = EXTREME, .edge = true},
    {.label = "1000x4104", .size = {2, 0, 1000, 4104}, .scalar = {1, 1}, .large = true},
};


/* ---- halves of one buffer --------------------------------------------------------------------------------------- */

/* One [rows, 2·cols] buffer where the context computes. */
struct halves {
    const liger_context *context;
    liger_dtype dtype;
    int64_t rows, cols;
    unsigned char *host, *device;
    size_t bytes;
};

static void halves_close(struct halves *halves) {
    free(halves->host);
    if (halves->device) device_release(halves->context, halves->device);
}

static bool halves_open(struct halves *halves, const struct op_run *run, const double *left, const double *right) {
    const int64_t cols = run->c.size[COLS], rows = cols ? count_of(&run->c) / cols : 0;
    const size_t element = liger_dtype_size(run->types.t);
    *halves = (struct halves){.context = run->context,
                              .dtype = run->types.t,
                              .rows = rows,
                              .cols = cols,
                              .bytes = (size_t)(2 * rows * cols) * element};
    halves->host = calloc(1, halves->bytes + 1);
    halves->device = device_allocate(run->context, halves->bytes + 1);
    if (halves->host == NULL || halves->device == NULL) return false;
    for (int64_t i = 0; left && i < rows * cols; i++) {
        unsigned char *at = halves->host + (size_t)(i / cols * 2 * cols + i % cols) * element;
        format_store(halves->dtype, at, left[i]);
        format_store(halves->dtype, at + (size_t)cols * element, right[i]);
    }
    return device_upload(run->context, halves->device, halves->host, halves->bytes);
}

/* Half 0 or 1 as a view. */
static liger_tensor half_view(const struct halves *halves, int half) {
    const int64_t shape[] = {halves->rows, halves->cols};
    liger_tensor view = liger_tensor_contiguous(
        halves->device + (size_t)(half * halves->cols) * liger_dtype_size(halves->dtype), halves->dtype, 2, shape);
    view.stride[0] = 2 * halves->cols;
    return view;
}

static bool half_equals(struct halves *halves, int half, const double *expected) {
    const size_t element = liger_dtype_size(halves->dtype);
    if (device_synchronize(halves->context) != NULL) return false;
    if (!device_download(halves->context, halves->host, halves->device, halves->bytes)) return false;
    for (int64_t i = 0; i < halves->rows * halves->cols; i++) {
        const int64_t at = i / halves->cols * 2 * halves->cols + half * halves->cols + i % halves->cols;
        if (format_load(halves->dtype, halves->host + (size_t)at * element) != expected[i]) return false;
    }
    return true;
}

/* y of a fused projection, written over its gate half, has the bits of y of two tensors. */
static const char *forward_of_halves(struct op_run *run) {
    struct halves fused;
    const char *wrong = NULL;
    if (op_run_call(run) != LIGER_OK) return "the call on two tensors failed";
    if (!halves_open(&fused, run, run->t[GATE], run->t[UP])) {
        wrong = "no memory";
    } else {
        const liger_tensor gate = half_view(&fused, 0), up = half_view(&fused, 1);
        const struct op_call call = {.c = run->c, .t = {gate, up, gate}};
        if (call_swiglu_forward(run->context, &call, NULL) != LIGER_OK)
            wrong = op_run_text(run, "%s", liger_last_error());
        else if (!half_equals(&fused, 0, run->t[Y])) wrong = "y of the fused form differs from y of two tensors";
        else if (!half_equals(&fused, 1, run->t[UP])) wrong = "the up half was overwritten";
    }
    halves_close(&fused);
    return wrong;
}

/* ---- roundings -------------------------------------------------------------------------------------------------- */

/* Bit by bit, y is round(round(silu) · up) and then round(that · down_multiplier): the tolerance of parity is too wide
 * to see a rounding that is left out. round(silu) is y where up and down_multiplier are 1. */
static const char *rounds_like_operators(struct op_run *run) {
    const liger_dtype t = run->types.t;
    const double down = run->c.scalar[DOWN_MULTIPLIER];
    const char *wrong = NULL;
    if (run->c.size[ACTIVATION]) return op_run_not_applicable(run, "roundings: silu is not rounded to T");
    double *up = malloc((size_t)run->count[UP] * sizeof *up + 1);
    if (up == NULL) return "no memory";
    for (int64_t i = 0; i < run->count[UP]; i++) up[i] = run->t[UP][i], run->t[UP][i] = 1;
    run->c.scalar[DOWN_MULTIPLIER] = 1;
    if (op_run_call(run) != LIGER_OK) wrong = "the call that gives silu failed";
    for (int64_t i = 0; i < run->count[UP]; i++) {
        const double product = op_round(t, run->t[Y][i] * up[i]);
        run->t[UP][i] = up[i];
        up[i] = down != 1 ? op_round(t, product * down) : product;
    }
    run->c.scalar[DOWN_MULTIPLIER] = down;
    if (!wrong && op_run_call(run) != LIGER_OK) wrong = "the call failed";
    for (int64_t i = 0; i < run->count[Y] && !wrong; i++)
        if (run->t[Y][i] != up[i])
            wrong = op_run_text(run, "y[%lld] is %.9g, but must be %.9g", (long long)i, run->t[Y][i], up[i]);
    free(up);
    return wrong;
}

static const struct op_property forward_properties[] = {
    {"halves of one buffer", forward_of_halves},
    {"rounds like the separate operators", rounds_like_operators},
};

/* Bytes: every tensor once; in the bench none is absent. */
static const struct op_case bench[] = {
    {.label = "16384x14336", .size = {2, 0, 16384, 14336}, .scalar = {1, 1}, .dtypes = 1u << LIGER_BF16, .large = true},
    {.label = "2048x2816", .size = {2, 0, 2048, 2816}, .scalar = {1, 1}},
    {.label = "2048x11008", .size = {2, 0, 2048, 11008}, .scalar = {1, 1}},
};

const struct op_cases swiglu_forward_cases = {
    .name = "swiglu_forward",
    .tensor_count = FORWARD_TENSORS,
    .describe = describe_forward,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_swiglu_forward,
    .reference = reference_forward,
    .no_naive = OP_NO_SUMS,
    .no_loss = OP_IS_FORWARD,
    OP_PROPERTIES(forward_properties),
    OP_BENCH(bench),
};

/* ---- backward --------------------------------------------------------------------------------------------------- */

static void describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    describe_inputs(c, spec);
    spec[UP].ranges |= 1u << RANGE_TINY;
    spec[DY] = twin(c, "dy", ROLE_IN);
    spec[DY].ranges = 1u << RANGE_HUGE | 1u << RANGE_OFFSET;
    spec[DY].huge = 0x1p30;
    spec[DGATE] = twin(c, "dgate", ROLE_OUT);
    spec[DGATE].absent = c->flags & NO_DGATE;
    spec[DGATE].relative = 1.05;
    spec[DGATE].absolute = 24; /* f32 steps: sigmoid 6u, products 6u; 1 - s loses up to 17u·s before s is 1 */
    spec[DUP] = twin(c, "dup", ROLE_OUT);
    spec[DUP].absent = c->flags & NO_DUP;
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
    swiglu_backward_ref(count_of(c), c->scalar[GATE_MULTIPLIER], c->scalar[DOWN_MULTIPLIER], t[DY], t[GATE], t[UP],
                        t[DGATE], t[DUP]);
}

static double loss(const struct op_case *c, const struct op_types *types, double *const *t) {
    double sum = 0;
    (void)types;
    for (int64_t i = 0; i < count_of(c); i++) {
        double y;
        swiglu_forward_ref(1, LIGER_DTYPE_NONE, LIGER_DTYPE_NONE, c->scalar[GATE_MULTIPLIER],
                           c->scalar[DOWN_MULTIPLIER], t[GATE] + i, t[UP] + i, &y);
        sum += t[DY][i] * y;
    }
    return sum;
}

static const struct op_gradient gradients[] = {{DGATE, GATE}, {DUP, UP}};

/* Gradients written over the fused projection have the bits of those of separate tensors. */
static const char *backward_of_halves(struct op_run *run) {
    struct halves fused, upstream;
    const char *wrong = NULL;
    if (run->t[DGATE] == NULL || run->t[DUP] == NULL)
        return op_run_not_applicable(run, "halves of one buffer: a gradient is absent");
    if (op_run_call(run) != LIGER_OK) return "the call on separate tensors failed";
    const bool fused_open = halves_open(&fused, run, run->t[GATE], run->t[UP]);
    const bool upstream_open = halves_open(&upstream, run, run->t[DY], run->t[DY]);
    if (!fused_open || !upstream_open) {
        wrong = "no memory";
    } else {
        const liger_tensor gate = half_view(&fused, 0), up = half_view(&fused, 1);
        const struct op_call call = {.c = run->c, .t = {gate, up, half_view(&upstream, 1), gate, up}};
        if (call_swiglu_backward(run->context, &call, NULL) != LIGER_OK)
            wrong = op_run_text(run, "%s", liger_last_error());
        else if (!half_equals(&fused, 0, run->t[DGATE])) wrong = "dgate of the fused form differs";
        else if (!half_equals(&fused, 1, run->t[DUP])) wrong = "dup of the fused form differs";
    }
    halves_close(&fused);
    halves_close(&upstream);
    return wrong;
}

static const struct op_property backward_properties[] = {{"halves of one buffer, in place", backward_of_halves}};

const struct op_cases swiglu_backward_cases = {
    .name = "swiglu_backward",
    .tensor_count = BACKWARD_TENSORS,
    .describe = describe_backward,
    OP_CASES(cases),
    .prepare = prepare,
    .call = call_swiglu_backward,
    .reference = reference_backward,
    .no_naive = OP_NO_SUMS,
    .loss = loss,
    OP_GRADIENTS(gradients),
    OP_PROPERTIES(backward_properties),
    OP_BENCH(bench),
};
