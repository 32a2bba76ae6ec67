/* compare.c - see compare.h. Zero elements compare as equal; everything else must be right one by one. */
#include "tests/harness/compare.h"

#include <math.h>

#include "tests/harness/float_formats.h"

double compare_magnitude(int64_t count, const double *values) {
    double largest = 0;
    for (int64_t i = 0; i < count; i++)
        if (isfinite(values[i]) && fabs(values[i]) > largest) largest = fabs(values[i]);
    return largest;
}

/* `largest` is that of the output's format: what is expected beyond it must be infinite. At its edge the rounding decides
 * between the largest number and infinity, and there the budget counts. */
static double error_of(bool nan_for_infinity, double got, double expected, double budget, double largest) {
    if (isinf(budget)) return 0; /* scratch: whatever is left in it */
    if (nan_for_infinity && isinf(expected) && isnan(got)) return 0;
    if (isnan(expected) || isnan(got)) return isnan(expected) && isnan(got) ? 0 : INFINITY;
    const bool alike = signbit(got) == signbit(expected);
    if (isinf(expected)) return got == expected ? 0 : INFINITY;
    if (isinf(got)) return alike && fabs(expected) + budget >= largest ? 0 : INFINITY;
    const double error = fabs(got - expected);
    if (error == 0) return 0;
    return budget > 0 ? error / budget : INFINITY;
}

struct comparison compare_values(const struct tensor_spec *spec, liger_dtype dtype, liger_dtype t, int64_t count,
                                 const double *got, const double *expected) {
    struct comparison result = {0, -1, 0, 0};
    const bool exact = !format_is_float(dtype);
    const double unit = exact ? 0 : format_unit(dtype);
    const double largest = exact ? INFINITY : format_largest(dtype);
    const double at_hand = spec->magnitude > 0 ? spec->magnitude : compare_magnitude(count, expected);
    const double magnitude = fmin(at_hand, largest); /* beyond it results are infinite */
    const double inner = t == LIGER_F16 || t == LIGER_BF16 ? spec->inner * 2 * format_unit(t) : 0;
    const double steps = exact ? 0 : (0.5 * spec->relative + spec->steps) * format_smallest(dtype);
    const double fixed = exact ? 0 : (spec->absolute * 0x1p-24 + inner) * magnitude + steps;
    for (int64_t i = 0; i < count; i++) {
        const double budget =
            exact || !isfinite(expected[i]) ? fixed : fixed + spec->relative * unit * fabs(expected[i]);
        const double error = error_of(spec->nan_for_infinity, got[i], expected[i], budget, largest);
        if (result.index < 0 || error > result.worst) result = (struct comparison){error, i, got[i], expected[i]};
    }
    return result;
}

struct comparison compare_errors(int64_t count, const double *got, const double *expected) {
    struct comparison result = {0, -1, 0, 0};
    for (int64_t i = 0; i < count; i++) {
        const double error = error_of(false, got[i], expected[i], 1, INFINITY);
        if (result.index < 0 || error > result.worst) result = (struct comparison){error, i, got[i], expected[i]};
    }
    return result;
}
