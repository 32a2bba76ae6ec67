/* sort_keys.h - keys of core/row_keys.h in order, on one thread: some microseconds for thousands of them. */
#ifndef LIGER_CPU_SORT_KEYS_H
#define LIGER_CPU_SORT_KEYS_H

#include <stdint.h>

/* A digit of few keys is short: to clear and to add up its 2^bits counters would cost more than to go over the keys once more. */
enum { KEY_DIGIT = 11, KEY_DIGITS = 1 << KEY_DIGIT, SHORT_KEY_DIGIT = 8, FEW_KEYS = 1024 };

/* By one digit of the row, leaving those with the same one as they are. */
static inline void sort_keys_by_digit(const uint64_t *keys, uint64_t *sorted, int64_t count, int shift, int bits) {
    const int digits = 1 << bits;
    int64_t place[KEY_DIGITS], next = 0;
    for (int d = 0; d < digits; d++) place[d] = 0;
    for (int64_t i = 0; i < count; i++) place[keys[i] >> shift & (uint64_t)(digits - 1)]++;
    for (int d = 0; d < digits; d++) {
        const int64_t here = place[d];
        place[d] = next;
        next += here;
    }
    for (int64_t i = 0; i < count; i++) sorted[place[keys[i] >> shift & (uint64_t)(digits - 1)]++] = keys[i];
}

/* Keys whose items are in order and whose rows are `rows` at most; `other` has room for as many. Returns the one of the two
 * arrays where they are sorted. */
static inline const uint64_t *sort_keys(uint64_t *keys, uint64_t *other, int64_t count, int64_t rows) {
    const int bits = count < FEW_KEYS ? SHORT_KEY_DIGIT : KEY_DIGIT;
    for (int shift = 0; count > 1 && rows >> shift > 0; shift += bits) {
        uint64_t *sorted = other;
        sort_keys_by_digit(keys, sorted, count, 32 + shift, bits);
        other = keys, keys = sorted;
    }
    return keys;
}

#endif
