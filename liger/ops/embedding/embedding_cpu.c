/* embedding_cpu.c - embedding on the CPU, compiled once per instruction set.
 *
 * Forward copies rows. Backward sorts the tokens by row, which takes some microseconds, and then writes the table from top to
 * bottom, each row once: threads share out the rows. */
#include "liger/core/fail.h"
#include "liger/core/kernel_table.h"
#include "liger/cpu/parallel.h"
#include "liger/cpu/simd.h"
#include "liger/cpu/sort_keys.h"
#include "liger/ops/embedding/embedding_problem.h"

enum {
    BYTES_PER_CHUNK = 64 << 10,
    /* An output that leaves the caches anyway is written past them: the gradient is next read by an optimizer. */
    STREAM_Y = 64 << 20,
    STREAM_GRADIENT = 16 << 20,
    BLOCK = 1024,    /* columns whose sums stay in the nearest cache */
    SHORT_ROW = 128, /* bytes that are sooner copied than a function is called for them */
    CHECKED = 256,   /* indices at a time */
};

/* Nothing is written where an index has no row. */
static liger_status check_indices(const char *op, liger_dtype dtype, const void *indices, int64_t tokens,
                                  int64_t vocab) {
    for (int64_t begin = 0; begin < tokens; begin += CHECKED) {
        const int64_t end = tokens - begin < CHECKED ? tokens : begin + CHECKED;
        bool wrong = false; /* looked for where it is: then the loop is vectors' */
        if (dtype == LIGER_I32)
            for (int64_t i = begin; i < end; i++)
                wrong |= (uint64_t)(int64_t)((const int32_t *)indices)[i] >= (uint64_t)vocab;
        else
            for (int64_t i = begin; i < end; i++) wrong |= ((const uint64_t *)indices)[i] >= (uint64_t)vocab;
        for (int64_t i = begin; wrong && i < end; i++) {
            const int64_t index = index_load(dtype, indices, i);
            LIGER_REQUIRE(index >= 0 && index < vocab, LIGER_ERR_TARGET,
                          "%s: indices[%lld] is %lld, which is out of bounds: it must be in [0, %lld)", op,
                          (long long)i, (long long)index, (long long)vocab);
        }
    }
    return LIGER_OK;
}

static int64_t rows_per_chunk(liger_dtype t, int64_t cols) {
    return 1 + BYTES_PER_CHUNK / (cols * (int64_t)liger_dtype_size(t));
}
static bool streams(liger_dtype t, int64_t rows, int64_t cols, int64_t from) {
    return rows * cols * (int64_t)liger_dtype_size(t) > from;
}

/* A row of whole cache lines, that is: what v_stream_two asks for. */
static bool may_stream(const void *row, liger_dtype t, int64_t cols) {
    return (uintptr_t)row % 64 == 0 && cols * (int64_t)liger_dtype_size(t) % 64 == 0;
}

/* Bits pass through f32 vectors unchanged, whatever they are: they are only moved. x == NULL: zeros. */
static void stream_row(void *y, const void *x, int64_t bytes) {
    V_FOR_EACH_TWO(i, n, bytes / (int64_t)sizeof(float), {
        v_f32 two[2] = {v_zero(), v_zero()};
        if (x) v_load_two(LIGER_F32, x, i, n, two);
        v_stream_two(LIGER_F32, y, i, n, two);
    });
}

/* In pieces whose size is known; the last two may overlap. x and y do not. */
static inline void copy_short(char *y, const char *x, int64_t bytes) {
    if (bytes >= 16) {
        for (int64_t i = 0; i + 16 < bytes; i += 16) memcpy(y + i, x + i, 16);
        memcpy(y + bytes - 16, x + bytes - 16, 16);
    } else {
        for (int64_t part = 8; part >= 2; part /= 2)
            if (bytes & part) memcpy(y, x, (size_t)part), y += part, x += part;
    }
}

static void copy_row(bool stream, liger_dtype t, void *y, const void *x, int64_t cols) {
    const int64_t bytes = cols * (int64_t)liger_dtype_size(t);
    if (stream && may_stream(y, t, cols)) stream_row(y, x, bytes);
    else if (x) memcpy(y, x, (size_t)bytes);
    else memset(y, 0, (size_t)bytes);
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* Rows of so many bytes: where that is a literal, a copy is a few moves. */
static inline void forward_short(const struct embedding_forward_problem *p, int64_t begin, int64_t end, int64_t bytes) {
    const size_t element = liger_dtype_size(p->dtype);
    for (int64_t i = begin; i < end; i++) {
        const int64_t index = index_load(p->index_dtype, p->indices, i);
        char *y = row_of(p->y, i, element);
        if (index == p->padding_index) memset(y, 0, (size_t)bytes);
        else copy_short(y, row_of(p->weight, index, element), bytes);
    }
}

static void forward_chunk(void *argument, int64_t begin, int64_t end) {
    const struct embedding_forward_problem *p = argument;
    const size_t element = liger_dtype_size(p->dtype);
    const bool stream = streams(p->dtype, p->tokens, p->cols, STREAM_Y);
    const int64_t bytes = p->cols * (int64_t)element;
    switch (stream || bytes > SHORT_ROW ? 0 : bytes) {
        case 0: break;
        case 16: forward_short(p, begin, end, 16); return;
        case 32: forward_short(p, begin, end, 32); return;
        case 64: forward_short(p, begin, end, 64); return;
        case 128: forward_short(p, begin, end, 128); return;
        default: forward_short(p, begin, end, bytes); return;
    }
    for (int64_t i = begin; i < end; i++) {
        const int64_t index = index_load(p->index_dtype, p->indices, i);
        const void *row = index == p->padding_index ? NULL : row_of(p->weight, index, element);
        if (i + 1 < end) /* the processor finds out where a row goes on, but not where the next one begins */
            __builtin_prefetch(row_of(p->weight, index_load(p->index_dtype, p->indices, i + 1), element));
        copy_row(stream, p->dtype, row_of(p->y, i, element), row, p->cols);
    }
    v_stream_end();
}

liger_status LIGER_CPU(embedding_forward)(liger_context *context, const struct embedding_forward_problem *problem,
                                          liger_stream stream) {
    (void)stream;
    struct embedding_forward_problem p = *problem;
    LIGER_TRY(check_indices("embedding_forward", p.index_dtype, p.indices, p.tokens, p.vocab));
    liger_parallel_for(context, p.tokens, rows_per_chunk(p.dtype, p.cols), forward_chunk, &p);
    return LIGER_OK;
}

/* ---- backward: keys in order ------------------------------------------------------------------------------------ */

static const uint64_t *sorted_keys(const struct embedding_backward_problem *p) {
    uint64_t *keys = p->workspace;
    uint64_t *other = (uint64_t *)((char *)p->workspace + embedding_layout(p->tokens, p->cols).second);
    for (int64_t i = 0; i < p->tokens; i++)
        keys[i] = embedding_key(index_load(p->index_dtype, p->indices, i), i, p->vocab, p->padding_index);
    return sort_keys(keys, other, p->tokens, p->vocab);
}

/* ---- backward: sums --------------------------------------------------------------------------------------------- */

struct sums {
    const struct embedding_backward_problem *p;
    const uint64_t *keys;
    float *parts;
};

/* Of `count` columns from `first` on, over some keys. */
LIGER_TEMPLATE void sum_tokens(liger_dtype t, const struct sums *s, int64_t begin, int64_t end, int64_t first,
                               int64_t count, float *sum) {
    for (int64_t k = begin; k < end; k++) {
        const char *dy = row_of(s->p->dy, item_of_key(s->keys[k]), f_size(t));
        dy += first * (int64_t)f_size(t);
        if (k == begin) V_FOR_EACH(i, n, count, v_store_n(LIGER_F32, sum, i, n, v_load_n(t, dy, i, n)));
        else
            V_FOR_EACH(i, n, count, {
                const v_f32 so_far = v_load_n(LIGER_F32, sum, i, n);
                v_store_n(LIGER_F32, sum, i, n, v_add(so_far, v_load_n(t, dy, i, n)));
            });
    }
}

static void sum_parts(const struct sums *s, struct embedding_pieces_of_row of, int64_t first, int64_t count,
                      float *sum) {
    for (int64_t k = of.first; k <= of.last; k++) {
        const float *part = s->parts + (2 * k + (k == of.first ? of.odd : 0)) * s->p->cols + first;
        V_FOR_EACH(i, n, count, {
            const v_f32 so_far = k == of.first ? v_zero() : v_load_n(LIGER_F32, sum, i, n);
            v_store_n(LIGER_F32, sum, i, n, v_add(so_far, v_load_n(LIGER_F32, part, i, n)));
        });
    }
}

LIGER_TEMPLATE void write_row(liger_dtype t, const struct sums *s, int64_t begin, int64_t end, void *out) {
    float sum[BLOCK];
    const struct embedding_pieces_of_row of = embedding_pieces_of(begin, end, s->p->piece_bits);
    for (int64_t first = 0; first < s->p->cols; first += BLOCK) {
        const int64_t count = s->p->cols - first < BLOCK ? s->p->cols - first : BLOCK;
        if (of.first == of.last) sum_tokens(t, s, begin, end, first, count, sum);
        else sum_parts(s, of, first, count, sum);
        V_FOR_EACH(i, n, count, v_store_n(t, out, first + i, n, v_load_n(LIGER_F32, sum, i, n)));
    }
}

static void part_chunk(void *argument, int64_t which, int64_t end) {
    const struct sums *s = argument;
    for (; which < end; which++) {
        const struct embedding_part part =
            embedding_part_of(s->keys, s->p->tokens, s->p->vocab, s->p->piece_bits, which);
        float *sum = s->parts + which * s->p->cols;
        if (part.begin < part.end)
            LIGER_FOR_FLOAT(s->p->dtype, sum_tokens(LIGER_T, s, part.begin, part.end, 0, s->p->cols, sum))
    }
}

/* Rows that no token has. Of a table without gaps they are one piece: a call for each would cost more than to write it. */
static void clear_rows(bool stream, const struct embedding_backward_problem *p, int64_t begin, int64_t end) {
    const size_t element = liger_dtype_size(p->dtype);
    const bool whole = end - begin > 1 && p->dweight.inverse == 0 && p->dweight.inner_stride == p->cols;
    const int64_t rows = whole ? 1 : end - begin, cols = whole ? (end - begin) * p->cols : p->cols;
    for (int64_t i = 0; i < rows; i++) copy_row(stream, p->dtype, row_of(p->dweight, begin + i, element), NULL, cols);
}

static void row_chunk(void *argument, int64_t row, int64_t end) {
    const struct sums *s = argument;
    const struct embedding_backward_problem *p = s->p;
    const bool stream = streams(p->dtype, p->vocab, p->cols, STREAM_GRADIENT);
    int64_t key = first_key_of(s->keys, 0, p->tokens, row);
    while (row < end) {
        const int64_t of_key = key < p->tokens ? row_of_key(s->keys[key]) : end, first = key;
        const int64_t next = of_key < end ? of_key : end; /* those without a row come last, as of row `vocab` */
        if (row < next) clear_rows(stream, p, row, next);
        if (next == end) break;
        while (key < p->tokens && row_of_key(s->keys[key]) == next) key++;
        LIGER_FOR_FLOAT(p->dtype,
                        write_row(LIGER_T, s, first, key, row_of(p->dweight, next, liger_dtype_size(p->dtype))))
        row = next + 1;
    }
    v_stream_end();
}

liger_status LIGER_CPU(embedding_backward)(liger_context *context, const struct embedding_backward_problem *p,
                                           liger_stream stream) {
    (void)stream;
    LIGER_TRY(check_indices("embedding_backward", p->index_dtype, p->indices, p->tokens, p->vocab));
    const size_t parts = embedding_layout(p->tokens, p->cols).parts;
    struct sums sums = {p, sorted_keys(p), (float *)((char *)p->workspace + parts)};
    const int64_t pieces = embedding_pieces(p->tokens, p->piece_bits);
    if (pieces > 1) liger_parallel_for(context, 2 * pieces, 1, part_chunk, &sums);
    liger_parallel_for(context, p->vocab, rows_per_chunk(p->dtype, p->cols), row_chunk, &sums);
    return LIGER_OK;
}
