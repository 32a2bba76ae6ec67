/* targets.h - labels that a loss on the CPU is given: looked at before anything is written. */
#ifndef LIGER_CPU_TARGETS_H
#define LIGER_CPU_TARGETS_H

#include "liger/core/fail.h"
#include "liger/cpu/simd.h"

/* Refuses the label y of a row if it is neither ignore_index nor one of the vocabulary. */
static inline liger_status target_check(const char *op, int64_t row, int64_t y, int64_t vocab, int64_t ignore_index) {
    LIGER_REQUIRE(y == ignore_index || (y >= 0 && y < vocab), LIGER_ERR_TARGET,
                  "%s: target[%lld] is %lld, which is out of bounds: it must be in [0, %lld) or ignore_index %lld", op,
                  (long long)row, (long long)y, (long long)vocab, (long long)ignore_index);
    return LIGER_OK;
}
/* All of them. */
static inline liger_status targets_check(const char *op, liger_dtype dtype, const void *target, int64_t rows,
                                         int64_t vocab, int64_t ignore_index) {
    for (int64_t r = 0; r < rows; r++)
        LIGER_TRY(target_check(op, r, index_load(dtype, target, r), vocab, ignore_index));
    return LIGER_OK;
}

#endif
