/* linear_slices.h - the loop over slices of the vocabulary, for a loss whose gradient is known once all its statistics are.
 * Internal.
 *
 *   per slice:   logits = x·W[slice]ᵀ (+ bias)  →  gradient, in place  →  dW[slice] = dlogitsᵀ·x,  dbias[slice] = Σ dlogits
 *                                                                        dx (+)= dlogits·W[slice]
 *
 * A slice of dweight is one product over all rows, rounded once; dx is the sum over slices, in f32. So nothing of the size of
 * the weight is held but its gradient, where chunks of rows need an f32 sum of that size, for one more product of the
 * logits' size. Logits that the forward pass has kept are one slice that needs no product. */
#ifndef LIGER_CHUNK_LINEAR_SLICES_H
#define LIGER_CHUNK_LINEAR_SLICES_H

#include "liger/chunk/linear_head.h"

/* Turns the logits of the columns [first, first + cols) of all rows into their gradient, in place. */
typedef liger_status linear_slices_gradient(liger_context *context, void *state, int64_t first, int64_t cols,
                                            void *logits, int64_t stride, liger_stream stream);

struct linear_slices {
    struct linear_head head; /* logits: [rows, slice_cols], overwritten again and again; workspace: 256-byte aligned */
    int64_t rows, slice_cols;
    bool kept;        /* logits are there: slice_cols == vocab */
    int64_t in_place; /* 0, or slices: they are there in dweight (linear_in_place.h) */
    /* Results, or NULL. Row r of dx is that of row place_of[r] here, or 0 where that is negative; without it, of row r. */
    void *dx;             /* [dx_rows, hidden] */
    liger_dtype dx_dtype; /* the head's, or f32 */
    int64_t dx_stride, dx_rows;
    const int64_t *place_of;
    void *dweight; /* [vocab, hidden], contiguous */
    liger_dtype dweight_dtype;
    float *dbias; /* [vocab] */
    linear_slices_gradient *gradient;
    void *state;
};

/* The bytes of head.workspace. Looks at sizes and at which pointers there are. */
size_t linear_slices_workspace(const liger_context *context, const struct linear_slices *slices);

/* The columns per slice that a caller should provide logits for, who wants dx or not. */
int64_t linear_slices_cols(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t hidden, int64_t vocab,
                           bool dx);

/* Such a gradient from a row of numbers for each token: `state` is the struct logits_gradient_problem of all columns. */
linear_slices_gradient linear_slices_from_rows;

/* The columns of slices of `bytes` each, evenly spread; one step at least. */
int64_t linear_slices_even(const liger_context *context, liger_dtype dtype, int64_t rows, int64_t vocab, int64_t bytes);

liger_status linear_slices_run(liger_context *context, const struct linear_slices *slices, liger_stream stream);

#endif
