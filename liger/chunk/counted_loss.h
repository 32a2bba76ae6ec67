/* counted_loss.h - a loss that is the sum of what rows that count weigh: the count before its kernels, the sum after them.
 * Internal.
 *
 * Both are steps of cross entropy, which counts labels and adds rows up in a fixed order. Nothing waits for the device. */
#ifndef LIGER_CHUNK_COUNTED_LOSS_H
#define LIGER_CHUNK_COUNTED_LOSS_H

#include "liger/core/context_state.h"
#include "liger/core/counted_rows.h"

struct counted_loss {
    struct counted_rows rows; /* labels, their dtype and ignore_index are the caller's, the rest is set here */
    int64_t count;            /* rows of the batch */
    float *loss;              /* the result, or NULL */
    void *workspace;          /* counted_loss_workspace() bytes, aligned to 256 */
};

size_t counted_loss_workspace(int64_t rows);
/* The losses of rows, for kernels to write, already weighted; NULL where nobody asks for the loss. */
float *counted_loss_rows(const struct counted_loss *loss);

/* A row weighs `share`, with `mean` divided by the number of rows that count. */
liger_status counted_loss_begin(liger_context *context, struct counted_loss *loss, bool mean, double share,
                                liger_stream stream);
liger_status counted_loss_end(liger_context *context, const struct counted_loss *loss, liger_stream stream);

#endif
