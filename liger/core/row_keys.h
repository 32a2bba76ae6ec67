/* row_keys.h - items in the order of the rows that they belong to. Internal.
 *
 * A key is (row, item) in one number, both below 2^32: sorted, the items of a row stand side by side and in their order, and
 * no two keys are equal. */
#ifndef LIGER_CORE_ROW_KEYS_H
#define LIGER_CORE_ROW_KEYS_H

#include "liger/core/rows.h"

LIGER_HOST_DEVICE static inline uint64_t row_key(int64_t row, int64_t item) {
    return (uint64_t)row << 32 | (uint64_t)item;
}
LIGER_HOST_DEVICE static inline int64_t row_of_key(uint64_t key) { return (int64_t)(key >> 32); }
LIGER_HOST_DEVICE static inline int64_t item_of_key(uint64_t key) { return (int64_t)(uint32_t)key; }

/* The first key of [begin, end) that is of this row or a later one; `end` if there is none. */
LIGER_HOST_DEVICE static inline int64_t first_key_of(const uint64_t *keys, int64_t begin, int64_t end, int64_t row) {
    while (begin < end) {
        const int64_t middle = begin + (end - begin) / 2;
        if (row_of_key(keys[middle]) < row) begin = middle + 1;
        else end = middle;
    }
    return begin;
}

#endif
