/* linear_loss.h - the one loop over chunks of rows that every loss on top of a linear head shares. Internal.
 *
 *   per chunk:   logits = x·Wᵀ (+ bias)  →  step: loss and dlogits, in place  →  dx = dlogits·W
 *                                                                                dW (+)= dlogitsᵀ·x,  dbias (+)= Σ dlogits
 *
 * The whole [rows, vocab] tensor of logits never exists, or lies where dweight will be (linear_in_place.h). An operator brings a
 * step; the products go through the kernel table, so this file has no device code. */
#ifndef LIGER_CHUNK_LINEAR_LOSS_H
#define LIGER_CHUNK_LINEAR_LOSS_H

#include "liger/chunk/linear_head.h"

/* Turns the logits of rows [first, first + rows) into their losses and, if the run wants gradients, into dlogits. */
typedef liger_status linear_loss_step(liger_context *context, void *state, int64_t first, int64_t rows, void *logits,
                                      int64_t stride, liger_stream stream);

struct linear_loss {
    struct linear_head head;  /* logits: [chunk_rows, vocab], overwritten again and again */
    int64_t rows, chunk_rows; /* as linear_loss_sized() sets them */
    int64_t slices;           /* 0, or of the vocabulary: logits are made in dweight, all rows at once */
    void *dx;                 /* [rows, hidden] of the head's dtype, or NULL */
    int64_t dx_stride;
    void *dweight; /* [vocab, hidden] contiguous or NULL */
    liger_dtype dweight_dtype;
    float *dbias;           /* [vocab] or NULL */
    bool step_makes_logits; /* it is given the buffer and leaves dlogits there */
    linear_loss_step *step;
    void *state;
};

/* The bytes of head.workspace. Looks at sizes and at which pointers there are. */
size_t linear_loss_workspace(const liger_context *context, const struct linear_loss *loss);

/* The number of rows per chunk that a caller should provide logits for: one chunk where the accumulator of dweight, if there
 * is a dweight, would cost as much memory as the logits it saves and is within what somebody has named as a budget, else what
 * the budget allows (LIGER_LOSS_WORKSPACE_MB), evenly spread or in sizes that suit a GPU. */
int64_t linear_loss_chunk_rows(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden,
                               int64_t vocab, bool dweight);

/* The same for a caller who keeps the logits for the gradients, which saves a product: all rows, where a budget that somebody
 * has named holds them; if nobody has, where they cost no more than `hidden` rows above a chunk, which is what an f32
 * accumulator of dweight would. */
int64_t linear_loss_kept_rows(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden,
                              int64_t vocab);

/* One pass or two: the columns of logits that a caller should provide who wants dweight in 16 bits and rounded once.
 *
 *   vocab   chunks of rows, as above
 *   fewer   of all rows. The logits are made twice: for their statistics in chunks of rows, which take turns in the same
 *           buffer (linear_loss_share), and for the gradients in slices of the vocabulary (linear_slices.h)
 *
 * Two passes take four products where one takes three, and an f32 sum of dx instead of one of dweight. So they are for a budget
 * that somebody has named, and that holds neither all logits nor the sum of dweight, which is the larger sum; without a dx there
 * is none. */
int64_t linear_loss_slice_cols(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden,
                               int64_t vocab, bool dx);

/* Chunks of rows in a buffer of `elements`, which hold one row at least: sets chunk_rows and head.logits_stride. */
void linear_loss_share(const liger_context *context, struct linear_loss *loss, int64_t elements);

liger_status linear_loss_run(liger_context *context, const struct linear_loss *loss, liger_stream stream);

#endif
