/* gated_cases.c - see gated_cases.h. */
#include "tests/harness/gated_cases.h"

#include <math.h>
#include <stdlib.h>

#include "tests/harness/device_memory.h"
#include "tests/harness/float_formats.h"
#include "tests/harness/op_run.h"

static void describe_inputs(const struct op_case *c, struct tensor_spec *spec) {
    spec[GATED_GATE] = rows_tensor(c, "gate", ROLE_IN);
    spec[GATED_GATE].spread = 3;
    spec[GATED_GATE].ranges = OP_EVERY_RANGE;
    spec[GATED_UP] = rows_tensor(c, "up", ROLE_IN);
    spec[GATED_UP].ranges = 1u << RANGE_HUGE | 1u << RANGE_OFFSET;
    spec[GATED_UP].huge = 0x1p30; /* f32: gate · up may overflow, dy · up may not */
}

void gated_describe_forward(const struct op_case *c, struct tensor_spec *spec) {
    describe_inputs(c, spec);
    spec[GATED_Y] = rows_tensor(c, "y", ROLE_OUT);
}

void gated_describe_backward(const struct op_case *c, struct tensor_spec *spec) {
    describe_inputs(c, spec);
    spec[GATED_UP].ranges |= 1u << RANGE_TINY;
    spec[GATED_DY] = rows_tensor(c, "dy", ROLE_IN);
    spec[GATED_DY].ranges = 1u << RANGE_HUGE | 1u << RANGE_OFFSET;
    spec[GATED_DY].huge = 0x1p30;
    spec[GATED_DGATE] = rows_tensor(c, "dgate", ROLE_OUT);
    spec[GATED_DGATE].absent = c->flags & GATED_NO_DGATE;
    spec[GATED_DUP] = rows_tensor(c, "dup", ROLE_OUT);
    spec[GATED_DUP].absent = c->flags & GATED_NO_DUP;
}

void gated_prepare(const struct op_case *c, const struct op_types *types, double *const *t) {
    static const double extremes[] = {-1e4, 1e4, -INFINITY, INFINITY, NAN, -1e30, 1e30,
                                      -90,  90,  -17,       17,       0,   -0.0,  1e-3};
    (void)types;
    if (!(c->flags & GATED_EXTREME)) return;
    for (int64_t i = 0; i < elements_of(c); i++) t[GATED_GATE][i] = extremes[i % OP_COUNT(extremes)];
}

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
    const int64_t cols = run->c.size[COLS], rows = rows_of(&run->c);
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

const char *gated_forward_of_halves(struct op_run *run) {
    struct halves fused;
    const char *wrong = NULL;
    if (op_run_call(run) != LIGER_OK) return "the call on two tensors failed";
    if (!halves_open(&fused, run, run->t[GATED_GATE], run->t[GATED_UP])) {
        wrong = "no memory";
    } else {
        const liger_tensor gate = half_view(&fused, 0), up = half_view(&fused, 1);
        const struct op_call call = {.c = run->c, .t = {gate, up, gate}};
        if (run->op->call(run->context, &call, NULL) != LIGER_OK) wrong = op_run_text(run, "%s", liger_last_error());
        else if (!half_equals(&fused, 0, run->t[GATED_Y])) wrong = "y of the fused form differs from y of two tensors";
        else if (!half_equals(&fused, 1, run->t[GATED_UP])) wrong = "the up half was overwritten";
    }
    halves_close(&fused);
    return wrong;
}

const char *gated_backward_of_halves(struct op_run *run) {
    struct halves fused, upstream;
    const char *wrong = NULL;
    if (run->t[GATED_DGATE] == NULL || run->t[GATED_DUP] == NULL)
        return op_run_not_applicable(run, "halves of one buffer: a gradient is absent");
    if (op_run_call(run) != LIGER_OK) return "the call on separate tensors failed";
    const bool fused_open = halves_open(&fused, run, run->t[GATED_GATE], run->t[GATED_UP]);
    const bool upstream_open = halves_open(&upstream, run, run->t[GATED_DY], run->t[GATED_DY]);
    if (!fused_open || !upstream_open) {
        wrong = "no memory";
    } else {
        const liger_tensor gate = half_view(&fused, 0), up = half_view(&fused, 1);
        const struct op_call call = {.c = run->c, .t = {gate, up, half_view(&upstream, 1), gate, up}};
        if (run->op->call(run->context, &call, NULL) != LIGER_OK) wrong = op_run_text(run, "%s", liger_last_error());
        else if (!half_equals(&fused, 0, run->t[GATED_DGATE])) wrong = "dgate of the fused form differs";
        else if (!half_equals(&fused, 1, run->t[GATED_DUP])) wrong = "dup of the fused form differs";
    }
    halves_close(&fused);
    halves_close(&upstream);
    return wrong;
}

/* ---- roundings -------------------------------------------------------------------------------------------------- */

const char *gated_rounds_like_operators(struct op_run *run, double *down_multiplier) {
    const liger_dtype t = run->types.t;
    const double down = down_multiplier ? *down_multiplier : 1;
    const char *wrong = NULL;
    double *up = malloc((size_t)run->count[GATED_UP] * sizeof *up + 1);
    if (up == NULL) return "no memory";
    for (int64_t i = 0; i < run->count[GATED_UP]; i++) up[i] = run->t[GATED_UP][i], run->t[GATED_UP][i] = 1;
    if (down_multiplier) *down_multiplier = 1;
    if (op_run_call(run) != LIGER_OK) wrong = "the call that gives the activation failed";
    for (int64_t i = 0; i < run->count[GATED_UP]; i++) {
        const double product = op_round(t, run->t[GATED_Y][i] * up[i]);
        run->t[GATED_UP][i] = up[i];
        up[i] = down != 1 ? op_round(t, product * down) : product;
    }
    if (down_multiplier) *down_multiplier = down;
    if (!wrong && op_run_call(run) != LIGER_OK) wrong = "the call failed";
    for (int64_t i = 0; i < run->count[GATED_Y] && !wrong; i++)
        if (run->t[GATED_Y][i] != up[i])
            wrong = op_run_text(run, "y[%lld] is %.9g, but must be %.9g", (long long)i, run->t[GATED_Y][i], up[i]);
    free(up);
    return wrong;
}

const char *gated_activation_is_rounded(struct op_run *run, liger_dtype activation) {
    for (int64_t i = 0; i < run->count[GATED_UP]; i++) run->t[GATED_UP][i] = 1;
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    for (int64_t i = 0; i < run->count[GATED_Y]; i++)
        if (run->t[GATED_Y][i] != op_round(activation, run->t[GATED_Y][i]))
            return op_run_text(run, "activation %lld is %.9g, which is no %s", (long long)i, run->t[GATED_Y][i],
                               liger_dtype_name(activation));
    return NULL;
}
