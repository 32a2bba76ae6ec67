/* divide.cuh - division by a number that the host knows: a multiplication and a shift instead of some twenty instructions.
 *
 * multiplier = ceil(2^shift / value) with shift = 31 + ceil(log2 value) is below 2^32, and the quotient is exact for every
 * dividend below 2^31 (Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994). */
#ifndef LIGER_CUDA_DIVIDE_CUH
#define LIGER_CUDA_DIVIDE_CUH

#include <stdint.h>

struct divisor {
    unsigned value, multiplier, shift;
};

static const int64_t MOST_DIVIDENDS = (int64_t)1 << 31; /* dividends are below this */

/* value: 1 to 2^31. 0 makes a divisor that must not be used. */
static inline divisor divide_by(unsigned value) {
    unsigned bits = 0;
    while (((uint64_t)1 << bits) < value) bits++;
    const uint64_t power = (uint64_t)1 << (31 + bits);
    return {value, value ? (unsigned)((power + value - 1) / value) : 0, 31 + bits};
}

__device__ __forceinline__ unsigned quotient(unsigned dividend, divisor by) {
    return (unsigned)(((uint64_t)dividend * by.multiplier) >> by.shift);
}

#endif
