/* linear_loss.h - the one loop over chunks of rows that every loss on top of a linear head shares. Internal.
 *
 *   per chunk:   logits = x·Wᵀ (+ bias)  →  head: loss and dlogits, in place  →  dx = dlogits·W
 *                                                                                dW (+)= dlogitsᵀ·x,  dbias (+)= Σ dlogits
 *
 * The whole [rows, vocab] tensor of logits never exists. An operator brings a head; the products go through the kernel
 * table, so this file has no device code. */
#ifndef LIGER_CHUNK_LINEAR_LOSS_H
#define LIGER_CHUNK_LINEAR_LOSS_H

#include "liger/core/context_state.h"
#include "liger/core/tensor.h"

/* Turns the logits of rows [first, first + rows) into their losses and, if the run wants gradients, into dlogits. */
typedef liger_status linear_loss_head(liger_context *context, void *state, int64_t first, int64_t rows, void *logits,
                                      int64_t stride, liger_stream stream);

struct linear_loss {
    liger_dtype dtype; /* of x, weight, bias, logits and dx */
    int64_t rows, hidden, vocab;
    const void *x; /* [rows, hidden] */
    int64_t x_stride;
    const void *weight; /* [vocab, hidden], contiguous */
    const void *bias;   /* [vocab] or NULL */
    void *logits;       /* [chunk_rows, vocab], overwritten again and again */
    int64_t logits_stride, chunk_rows;
    void *dx; /* [rows, hidden] or NULL */
    int64_t dx_stride;
    void *dweight; /* [vocab, hidden] contiguous or NULL */
    liger_dtype dweight_dtype;
    float *dbias;    /* [vocab] or NULL */
    void *workspace; /* linear_loss_workspace() bytes */
    size_t workspace_bytes;
    linear_loss_head *head;
    void *head_state;
};

/* Looks at sizes and at which pointers there are. */
size_t linear_loss_workspace(const liger_context *context, const struct linear_loss *loss);

/* The number of rows per chunk that a caller should provide logits for: one chunk where the accumulator of dweight, if there
 * is a dweight, would cost as much memory as the logits it saves, else what the budget allows (LIGER_LOSS_WORKSPACE_MB),
 * evenly spread or in sizes that suit a GPU. */
int64_t linear_loss_chunk_rows(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden,
                               int64_t vocab, bool dweight);

liger_status linear_loss_run(liger_context *context, const struct linear_loss *loss, liger_stream stream);

#endif
