/* linear_head.h - the products of a linear head, for the loops that take its logits piece by piece. Internal.
 *
 *   logits = x·Wᵀ + bias       dx = dlogits·W       dweight = dlogitsᵀ·x       dbias = Σ dlogits
 *
 * each for some rows and some of the vocabulary; logits and dlogits are one buffer. */
#ifndef LIGER_CHUNK_LINEAR_HEAD_H
#define LIGER_CHUNK_LINEAR_HEAD_H

#include "liger/core/context_state.h"
#include "liger/core/tensor.h"

struct linear_head {
    liger_dtype dtype; /* of x, weight, bias, logits and their gradient */
    int64_t hidden, vocab;
    const void *x; /* rows of `hidden` */
    int64_t x_stride;
    const void *weight; /* [vocab, hidden], contiguous */
    const void *bias;   /* [vocab] or NULL */
    void *logits;
    int64_t logits_stride;
    liger_dtype logits_dtype;        /* of the product, f32; NONE: the head's */
    void *workspace;                 /* scratch of the products, then of dbias */
    size_t product_bytes, sum_bytes; /* set by the loops */
};

/* The part whose logits are in the buffer. */
struct linear_part {
    int64_t first_row, rows, first_col, cols;
};

/* Where a product goes. */
struct linear_result {
    void *data;
    liger_dtype dtype; /* the head's, or f32 */
    int64_t stride;
    bool accumulate;
};

liger_status linear_head_logits(liger_context *context, const struct linear_head *head, const struct linear_part *part,
                                liger_stream stream);
/* dx of the part's rows: `data` is the first of all rows. */
liger_status linear_head_dx(liger_context *context, const struct linear_head *head, const struct linear_part *part,
                            struct linear_result dx, liger_stream stream);
/* dweight and dbias of the part's columns: `data` and `dbias` are the first of the vocabulary. */
liger_status linear_head_dweight(liger_context *context, const struct linear_head *head, const struct linear_part *part,
                                 struct linear_result dweight, liger_stream stream);
liger_status linear_head_dbias(liger_context *context, const struct linear_head *head, const struct linear_part *part,
                               float *dbias, bool accumulate, liger_stream stream);

/* Bytes that the loops may take above what gradients need: LIGER_LOSS_WORKSPACE_MB, else 1 GB on a GPU and on a CPU 0: by the
 * shape. */
int64_t linear_budget(const liger_context *context);

/* `count` zeros, which is what a product over nothing leaves; nothing where data is NULL. */
liger_status linear_zero(liger_context *context, void *data, liger_dtype dtype, int64_t count, liger_stream stream);

#endif
