/* rows_cases.c - see rows_cases.h. */
#include "tests/harness/rows_cases.h"

#include <math.h>

#include "tests/harness/float_formats.h"
#include "tests/harness/op_run.h"

int64_t rows_of(const struct op_case *c) {
    const int64_t rows = c->size[ROWS] < 0 ? 1 : c->size[ROWS];
    return c->size[OUTER] > 0 ? c->size[OUTER] * rows : rows;
}

int64_t elements_of(const struct op_case *c) { return rows_of(c) * c->size[COLS]; }

struct tensor_spec rows_tensor(const struct op_case *c, const char *name, enum tensor_role role) {
    struct tensor_spec spec = {.name = name, .role = role, .kind = KIND_T, .gaps = true, .specials = role == ROLE_IN};
    if (c->size[OUTER] > 0) spec.shape[spec.ndim++] = c->size[OUTER];
    if (c->size[ROWS] >= 0) spec.shape[spec.ndim++] = c->size[ROWS];
    spec.shape[spec.ndim++] = c->size[COLS];
    return spec;
}

struct tensor_spec rows_statistic(const struct op_case *c, const char *name, enum tensor_role role, bool absent) {
    return (struct tensor_spec){
        .name = name, .role = role, .kind = KIND_F32, .ndim = 1, .shape = {rows_of(c)}, .absent = absent};
}

const char *rows_sum_to_one(struct op_run *run, int y, double units) {
    const int64_t cols = run->c.size[COLS];
    const double steps = run->types.t == LIGER_F16 ? (double)cols * 0x1p-25 : 0;
    if (op_run_call(run) != LIGER_OK) return "the call failed";
    for (int64_t r = 0; r < rows_of(&run->c); r++) {
        double sum = 0;
        for (int64_t j = 0; j < cols; j++) sum += run->t[y][r * cols + j];
        if (!(fabs(sum - 1) <= format_unit(run->types.t) + units * 0x1p-24 + steps))
            return op_run_text(run, "row %lld of %s sums to %.9g", (long long)r, run->spec[y].name, sum);
    }
    return NULL;
}
