/* interleave.c - see interleave.h. */
#include "liger/cpu/interleave.h"

#include <string.h>

#include "liger/core/fail.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/scratch.h"

enum { PIECE = 2048, COPY = 1 << 18 };

/* ---- a transposition in place ------------------------------------------------------------------------------------- */

struct transposition {
    char *data;
    int64_t rows, cols;
    size_t bytes; /* of a block */
    const int64_t *starts;
    int64_t cycles;
};

/* Which block comes to `place`, of those that are stored column by column. */
static int64_t source_of(const struct transposition *t, int64_t place) {
    return place % t->rows * t->cols + place / t->rows;
}

/* A permutation is made of cycles. Marks all places that a walk comes to, and collects the first of each cycle; returns their
 * number. Blocks that stay where they are need nobody. */
static int64_t find_cycles(const struct transposition *t, int64_t *starts, char *seen) {
    const int64_t places = t->rows * t->cols;
    int64_t count = 0;
    memset(seen, 0, (size_t)places);
    for (int64_t place = 0; place < places; place++) {
        if (seen[place] || source_of(t, place) == place) continue;
        starts[count++] = place;
        for (int64_t at = place; !seen[at]; at = source_of(t, at)) seen[at] = 1;
    }
    return count;
}

/* The same piece of all blocks, so that threads need not know of each other. */
static void move_pieces(void *argument, int64_t begin, int64_t end) {
    const struct transposition *t = argument;
    for (int64_t piece = begin; piece < end; piece++) {
        const size_t first = (size_t)piece * PIECE, left = t->bytes - first, bytes = left < PIECE ? left : PIECE;
        char *const data = t->data + first;
        char kept[PIECE];
        for (int64_t cycle = 0; cycle < t->cycles; cycle++) {
            const int64_t start = t->starts[cycle];
            int64_t at = start;
            memcpy(kept, data + (size_t)start * t->bytes, bytes);
            for (int64_t from = source_of(t, at); from != start; at = from, from = source_of(t, from))
                memcpy(data + (size_t)at * t->bytes, data + (size_t)from * t->bytes, bytes);
            memcpy(data + (size_t)at * t->bytes, kept, bytes);
        }
    }
}

liger_status cpu_interleave(liger_context *context, void *data, int64_t rows, int64_t cols, size_t block_bytes) {
    struct transposition t = {.data = data, .rows = rows, .cols = cols, .bytes = block_bytes};
    const int64_t pieces = (int64_t)((block_bytes + PIECE - 1) / PIECE);
    const size_t places = (size_t)(rows * cols);
    if (rows == 1 || cols == 1) return LIGER_OK;
    int64_t *const starts =
        cpu_thread_scratch(places * (sizeof *starts + 1)); /* of two places or more each: too many */
    LIGER_REQUIRE(starts != NULL, LIGER_ERR_OOM, "interleave: no memory for the cycles of %lld x %lld blocks",
                  (long long)rows, (long long)cols);
    t.starts = starts;
    t.cycles = find_cycles(&t, starts, (char *)(starts + places));
    liger_parallel_for(context, pieces, 1, move_pieces, &t);
    return LIGER_OK;
}

/* ---- a copy -------------------------------------------------------------------------------------------------------- */

struct copy {
    char *to;
    const char *from;
    size_t bytes;
};

static void copy_some(void *argument, int64_t begin, int64_t end) {
    const struct copy *copy = argument;
    const size_t first = (size_t)begin * COPY,
                 after = (size_t)end * COPY < copy->bytes ? (size_t)end * COPY : copy->bytes;
    memcpy(copy->to + first, copy->from + first, after - first);
}

void cpu_copy(liger_context *context, void *to, const void *from, size_t bytes) {
    struct copy copy = {to, from, bytes};
    liger_parallel_for(context, (int64_t)((bytes + COPY - 1) / COPY), 1, copy_some, &copy);
}
