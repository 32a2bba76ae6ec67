/* norm_cases.c - see norm_cases.h. */
#include "tests/harness/norm_cases.h"

#include <math.h>

#include "tests/harness/op_run.h"

void norm_ranges(const struct op_case *c, struct tensor_spec *spec, uint32_t ranges, double huge, double tiny) {
    const bool alone = c->scalar[EPSILON] == 0;
    spec->ranges = alone ? ranges & ~(1u << RANGE_SUBNORMAL) : ranges;
    spec->huge = huge;
    spec->tiny = alone ? tiny : 0;
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
