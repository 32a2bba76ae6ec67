/* embedding_problem.h - what a backend sees: flat, checked, no views; and how the tokens of a row are found and cut.
 *
 * Backward sorts keys of (row, token). Sorted keys are cut into pieces of a fixed length. The tokens of a row that lie in one piece are added up by whoever writes the
 * row; of a row that lies in several, each piece adds up its part first: its sum goes to parts[2k] if the row has the first
 * key of piece k, else, as it then has the last one, to parts[2k + 1]. */
#ifndef LIGER_OPS_EMBEDDING_PROBLEM_H
#define LIGER_OPS_EMBEDDING_PROBLEM_H

#include <stdbool.h>
#include <stddef.h>

#include "liger/core/row_keys.h"

struct embedding_forward_problem {
    liger_dtype dtype, index_dtype;
    int64_t tokens, vocab, cols; /* tokens and cols 1 or more */
    int64_t padding_index;       /* negative: none */
    liger_rows weight, y;
    const void *indices;
};

struct embedding_backward_problem {
    liger_dtype dtype, index_dtype;
    int64_t tokens, vocab, cols; /* vocab and cols 1 or more */
    int64_t padding_index;
    liger_rows dy, dweight;
    const void *indices;
    int piece_bits;  /* embedding_piece_bits() */
    void *workspace; /* keys twice, then parts: embedding_layout() */
};

/* A piece has 2^bits keys. Few enough that a part is soon added up, and that a row has few parts; and no more parts than are
 * small beside dy. */
enum { EMBEDDING_PIECE_BITS = 9 };
static inline int embedding_piece_bits(int64_t tokens) {
    int bits = EMBEDDING_PIECE_BITS;
    while (tokens >> bits > (int64_t)4 << bits) bits++;
    return bits;
}
static inline int64_t embedding_pieces(int64_t tokens, int bits) { return (tokens + ((int64_t)1 << bits) - 1) >> bits; }

struct embedding_layout {
    size_t second, parts, bytes; /* where the second array of keys and the parts begin; and the end */
};
static inline struct embedding_layout embedding_layout(int64_t tokens, int64_t cols) {
    const int64_t pieces = embedding_pieces(tokens, embedding_piece_bits(tokens));
    const size_t keys = ((size_t)tokens * sizeof(uint64_t) + 255) / 256 * 256;
    const size_t parts = pieces > 1 ? (size_t)(2 * pieces * cols) * sizeof(float) : 0;
    return (struct embedding_layout){keys, 2 * keys, 2 * keys + parts};
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

/* Tokens without a row come last, as if they were of row `vocab`. */
LIGER_HOST_DEVICE static inline uint64_t embedding_key(int64_t index, int64_t token, int64_t vocab, int64_t padding) {
    const bool none = index < 0 || index >= vocab || index == padding;
    return row_key(none ? vocab : index, token);
}

struct embedding_part {
    int64_t begin, end; /* keys; none if they are equal */
};

/* The part that belongs in parts[which]. */
LIGER_HOST_DEVICE static inline struct embedding_part embedding_part_of(const uint64_t *keys, int64_t count,
                                                                        int64_t vocab, int bits, int64_t which) {
    const int64_t first = which / 2 << bits, after = first + ((int64_t)1 << bits), end = after < count ? after : count;
    const int64_t begins = row_of_key(keys[first]), ends = row_of_key(keys[end - 1]);
    const bool from_before = first > 0 && row_of_key(keys[first - 1]) == begins;
    const bool goes_on = end < count && row_of_key(keys[end]) == ends;
    const struct embedding_part none = {first, first};
    if (which % 2 == 1) {
        if (!goes_on || begins == ends || ends == vocab) return none;
        return (struct embedding_part){first_key_of(keys, first, end, ends), end};
    }
    if (begins == vocab || !(from_before || (begins == ends && goes_on))) return none;
    return (struct embedding_part){first, first_key_of(keys, first, end, begins + 1)};
}

/* The parts of the row of the keys [begin, end), which lie in pieces first to last: the first is parts[2 first + odd], the
 * others have even numbers. */
struct embedding_pieces_of_row {
    int64_t first, last, odd;
};
LIGER_HOST_DEVICE static inline struct embedding_pieces_of_row embedding_pieces_of(int64_t begin, int64_t end,
                                                                                   int bits) {
    return (struct embedding_pieces_of_row){begin >> bits, (end - 1) >> bits,
                                            (begin & (((int64_t)1 << bits) - 1)) != 0};
}

#endif
