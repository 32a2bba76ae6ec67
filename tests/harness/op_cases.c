/* op_cases.c - see op_cases.h. */
#include "tests/harness/op_cases.h"

#include <math.h>
#include <stdlib.h>

struct tensor_spec op_parameter(const char *name, enum tensor_role role, int64_t size, bool absent) {
    return (struct tensor_spec){.name = name,
                                .role = role,
                                .kind = KIND_WEIGHT,
                                .values = VALUES_POSITIVE,
                                .ndim = 1,
                                .shape = {size},
                                .absent = absent,
                                .specials = role == ROLE_IN};
}

void op_raise(double *magnitude, double value) {
    if (isfinite(value) && value > *magnitude) *magnitude = value;
}

double op_loss(int64_t elements, const double *dy, op_forward *forward, const void *problem) {
    double *y = malloc((size_t)elements * sizeof *y + 1), total = y ? 0 : NAN;
    if (y) forward(problem, y);
    for (int64_t i = 0; y && i < elements; i++) total += dy[i] * y[i];
    free(y);
    return total;
}
