/* interleave_cpu.c - blocks in another order on the CPU, in place. */
#include <string.h>

#include "liger/core/fail.h"
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/scratch.h"
#include "liger/cpu/simd.h"
#include "liger/ops/interleave/interleave_problem.h"

enum { LEAST_PIECE = 256, MOST_PIECE = 2048, LINE = 64 };

struct moves {
    const struct interleave_problem *of;
    size_t bytes, piece; /* of a block; and what of it is moved at a time */
    const int64_t *starts;
    int64_t cycles;
};

static int64_t source_of(const struct interleave_problem *p, int64_t place) {
    return interleave_source(p->rows, p->cols, place);
}

/* Marks all places that a walk comes to, and collects the first of each cycle; returns their number. Blocks that stay where
 * they are need nobody. */
static int64_t find_cycles(const struct interleave_problem *p, int64_t *starts, char *seen) {
    const int64_t places = p->rows * p->cols;
    int64_t count = 0;
    memset(seen, 0, (size_t)places);
    for (int64_t place = 0; place < places; place++) {
        if (seen[place] || source_of(p, place) == place) continue;
        starts[count++] = place;
        for (int64_t at = place; !seen[at]; at = source_of(p, at)) seen[at] = 1;
    }
    return count;
}

/* The same piece of all blocks, so that threads need not know of each other. */
static void move_pieces(void *argument, int64_t begin, int64_t end) {
    const struct moves *moves = argument;
    for (int64_t piece = begin; piece < end; piece++) {
        const size_t first = (size_t)piece * moves->piece, left = moves->bytes - first;
        const size_t bytes = left < moves->piece ? left : moves->piece;
        char *const data = (char *)moves->of->data + first;
        char kept[MOST_PIECE];
        for (int64_t cycle = 0; cycle < moves->cycles; cycle++) {
            const int64_t start = moves->starts[cycle];
            int64_t at = start;
            memcpy(kept, data + (size_t)start * moves->bytes, bytes);
            for (int64_t from = source_of(moves->of, at); from != start; at = from, from = source_of(moves->of, from))
                memcpy(data + (size_t)at * moves->bytes, data + (size_t)from * moves->bytes, bytes);
            memcpy(data + (size_t)at * moves->bytes, kept, bytes);
        }
    }
}

/* A piece for every thread, but not so small that most of the time goes into finding it. */
static size_t piece_of(size_t bytes, int32_t threads) {
    const size_t share = (bytes / (size_t)threads + LINE - 1) / LINE * LINE;
    return share < LEAST_PIECE ? LEAST_PIECE : share > MOST_PIECE ? MOST_PIECE : share;
}

liger_status LIGER_CPU(interleave)(liger_context *context, const struct interleave_problem *problem,
                                   liger_stream stream) {
    (void)stream;
    struct moves moves = {.of = problem, .bytes = (size_t)problem->block * liger_dtype_size(problem->dtype)};
    const size_t places = (size_t)(problem->rows * problem->cols);
    if (places == 0 || moves.bytes == 0) return LIGER_OK;
    int64_t *const starts =
        cpu_thread_scratch(places * (sizeof *starts + 1)); /* of two places or more each: too many */
    LIGER_REQUIRE(starts != NULL, LIGER_ERR_OOM, "interleave: no memory for the cycles of %lld x %lld blocks",
                  (long long)problem->rows, (long long)problem->cols);
    moves.starts = starts;
    moves.cycles = find_cycles(problem, starts, (char *)(starts + places));
    moves.piece = piece_of(moves.bytes, liger_thread_count(context));
    liger_parallel_for(context, (int64_t)((moves.bytes + moves.piece - 1) / moves.piece), 1, move_pieces, &moves);
    return LIGER_OK;
}
