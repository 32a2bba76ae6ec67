/* norm_cases.c - see norm_cases.h. */
#include "tests/harness/norm_cases.h"

#include <math.h>

#include "tests/harness/op_run.h"
#include "tests/harness/rows_cases.h"

void norm_ranges(const struct op_case *c, struct tensor_spec *spec, uint32_t ranges, double huge, double tiny) {
    const bool alone = c->scalar[EPSILON] == 0;
    spec->ranges = alone ? ranges & ~(1u << RANGE_SUBNORMAL) : ranges;
    spec->huge = huge;
    spec->tiny = alone ? tiny : 0;
}

struct tensor_spec norm_input(const struct op_case *c, const char *name, uint32_t ranges) {
    struct tensor_spec spec = rows_tensor(c, name, ROLE_IN);
    norm_ranges(c, &spec, ranges, NORM_OF_SQUARES);
    return spec;
}

double norm_rstd(const struct op_case *c, const double *row, int64_t cols, int power) {
    double squares = 0;
    for (int64_t k = 0; k < cols; k++) {
        double value = row[k];
        for (int p = 1; p < power; p++) value *= row[k];
        squares += value * value;
    }
    return 1 / sqrt(squares / (double)cols + (float)c->scalar[EPSILON]);
}

struct norm_moments norm_moments(const struct op_case *c, const double *row, int64_t cols) {
    double sum = 0, squares = 0;
    for (int64_t k = 0; k < cols; k++) sum += row[k];
    const double mean = sum / (double)cols;
    for (int64_t k = 0; k < cols; k++) squares += pow(row[k] - mean, 2);
    return (struct norm_moments){mean, 1 / sqrt(squares / (double)cols + (float)c->scalar[EPSILON])};
}

const char *norm_of_one_value(struct op_run *run, int x, int y, int64_t cols, int bias, int64_t spatial) {
    static const double values[] = {8000, 8000.123, 1000.37, -3e4, 1e-3};
    const liger_dtype t = run->types.t;
    if (run->c.scalar[EPSILON] == 0) return op_run_not_applicable(run, "rows of one value: 0 · Inf without epsilon");
    for (int64_t i = 0; i < run->count[x]; i++) run->t[x][i] = op_round(t, values[i / cols % OP_COUNT(values)]);
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    for (int64_t i = 0; i < run->count[y]; i++) {
        const double right = run->t[bias] ? op_round(t, run->t[bias][i / spatial % run->count[bias]]) : 0;
        if (run->t[y][i] != right)
            return op_run_text(run, "y[%lld] of a row of %.9g is %.9g, but must be %.9g", (long long)i, run->t[x][i],
                               run->t[y][i], right);
    }
    return NULL;
}

/* 5 bits of x, 13 of rstd, 4 of weight (of which 1 is the offset's) and 2 of dy. */
static void draw_few_bits(struct op_run *run, const struct norm_tensors *at) {
    const int64_t cols = run->count[at->x] / run->count[at->rstd];
    for (int64_t i = 0; i < run->count[at->x]; i++) {
        run->t[at->x][i] = (double)(9 + i * 5 % 23) / (i % 3 ? 8 : -8);
        run->t[at->dy][i] = ldexp(i % 5 < 2 ? -1 : 1, (int)(i % 7 % 3) - 1);
    }
    for (int64_t r = 0; r < run->count[at->rstd]; r++)
        run->t[at->rstd][r] = 1 + (double)(2 * (r * 37 % 499) + 1) / 4096;
    for (int64_t c = 0; run->t[at->weight] && c < cols; c++) run->t[at->weight][c] = (double)(5 + c % 7) / 4;
    for (int64_t i = 0; at->scale >= 0 && i < run->count[at->scale]; i++)
        run->t[at->scale][i] = (double)(i % 5 - 2) / 4;
}

const char *norm_inner_roundings(struct op_run *run, const struct norm_tensors *at) {
    enum { TERMS = 9 }; /* of a sum whose f32 error stays small */
    const double largest = 2 * (31.0 / 8 * 1.25) * (11.0 / 4 + 1), u = 0x1p-24; /* |dy|, |x·rstd|, |weight + offset| */
    bool some = false;
    if (run->types.t == LIGER_F32 || run->types.weight != LIGER_F32)
        return op_run_not_applicable(run, "inner roundings: T is f32, or the parameters are T");
    for (int k = at->gradients; k < at->gradients + at->count; k++)
        if (run->t[k] && run->count[k] && run->count[at->x] <= TERMS * run->count[k]) some = true;
    if (!some) return op_run_not_applicable(run, "inner roundings: no parameter has a gradient of few terms");
    draw_few_bits(run, at);
    if (op_run_call(run) != LIGER_OK) return liger_last_error();
    if (!op_run_expect(run)) return "no memory";
    for (int k = at->gradients; k < at->gradients + at->count; k++) {
        const double terms = (double)run->count[at->x] / (double)run->count[k];
        for (int64_t i = 0; run->t[k] && terms <= TERMS && i < run->count[k]; i++)
            if (!(fabs(run->t[k][i] - run->expected[k][i]) <= (terms + 4) * u * terms * largest))
                return op_run_text(run, "%s[%lld] is %.9g, but must be %.9g", run->spec[k].name, (long long)i,
                                   run->t[k][i], run->expected[k][i]);
    }
    return NULL;
}
